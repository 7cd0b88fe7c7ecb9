"""Tiles of the loss region: they cover the vocabulary once, keep the limits, and find every label."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from anew.compiler.custom_ops import MASKED
from anew.frontend.loss.tiling import ELEMENTS, Tiling

TOKENS = st.integers(1, 5000)
VOCABULARY = st.integers(1, 200_000)
LIMIT = st.sampled_from([256, 1024, 16384, 65536])


@given(TOKENS, VOCABULARY, LIMIT)
def test_every_column_is_in_one_tile(tokens, vocabulary, limit):
    tiles = Tiling.plan(tokens, vocabulary, limit).tiles
    owned = [c for tile in tiles for c in (tile.start + tile.overlap, tile.start + tile.size)]
    assert owned == sorted(owned)
    assert owned[0] == 0
    assert owned[-1] == vocabulary
    assert owned[1:-1:2] == owned[2::2]
    assert all(0 <= tile.overlap < tile.size <= limit and tile.start >= 0 for tile in tiles)
    assert len({(tile.size, tile.block) for tile in tiles}) == 1
    assert tiles[0].size % tiles[0].block == 0


@given(TOKENS, VOCABULARY, LIMIT)
def test_chunks_cover_the_tokens_and_bound_a_tile(tokens, vocabulary, limit):
    tiling = Tiling.plan(tokens, vocabulary, limit)
    assert tiling.rows * tiling.tiles[0].size <= ELEMENTS
    assert tiling.rows <= limit
    x = torch.arange(tokens)
    parts = [tiling.cut(x, rows, -1) for rows in tiling.chunks()]
    assert all(len(part) == tiling.rows for part in parts)
    assert torch.cat(parts)[:tokens].equal(x)
    assert (torch.cat(parts)[tokens:] == -1).all()
    assert len(parts) * tiling.rows == tiling.padded


@given(st.integers(1, 3000), st.sampled_from([256, 1024]), st.data())
def test_each_label_masks_its_own_column_in_one_tile(vocabulary, limit, data):
    target = torch.tensor(data.draw(st.lists(st.integers(-1, vocabulary - 1), min_size=1, max_size=4)))
    masks = torch.zeros(len(target), vocabulary)
    for tile in Tiling.plan(len(target), vocabulary, limit).tiles:
        block, place = tile.labels(target)
        masks[:, tile.span] += (block.unsqueeze(2) * place.unsqueeze(1)).view(len(target), -1)
    wanted = torch.zeros(len(target), vocabulary)
    labelled = (target >= 0).nonzero().squeeze(1)
    wanted[labelled, target[labelled]] = MASKED
    assert masks.equal(wanted)


@given(st.integers(257, 3000))
def test_columns_of_two_tiles_count_in_the_first(vocabulary):
    bias = torch.randn(vocabulary)
    for tile in Tiling.plan(4, vocabulary, 256).tiles:
        column = tile.column(bias).flatten()
        assert (column[: tile.overlap] == MASKED).all()
        assert column[tile.overlap :].equal(bias[tile.span][tile.overlap :])


def test_the_fewest_tiles():
    counts = {v: [len(Tiling.plan(8, v, limit).tiles) for limit in (16384, 65536)] for v in (512, 32000, 50257, 151936)}
    assert counts == {512: [1, 1], 32000: [2, 1], 50257: [4, 2], 151936: [10, 3]}
