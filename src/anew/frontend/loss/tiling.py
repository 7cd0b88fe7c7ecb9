"""How a matrix of logits [tokens, vocabulary] is cut into tiles of one size, so that one program computes all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from anew.compiler.custom_ops import MASKED

#: Columns of a block. A label's column is written as a block and a place in it, and each block has a sum of its own.
BLOCK = 256
#: Most logits of a tile: 32 MiB in fp16.
ELEMENTS = 2**24
#: How many times the fewest tiles are looked at.
MORE = 4


@dataclass(frozen=True)
class Cut:
    """Numbers of tiles and of chunks, columns of a tile and rows of a chunk."""

    tiles: int
    columns: int
    chunks: int
    rows: int

    @property
    def runs(self) -> int:
        """Runs of a program."""
        return self.tiles * self.chunks


@dataclass(frozen=True)
class Tile:
    """The columns ``start`` to ``start + size`` of the vocabulary; the first ``overlap`` belong to the tile before."""

    start: int
    size: int
    overlap: int
    block: int

    @property
    def span(self) -> slice:
        """Its rows of the head's weight."""
        return slice(self.start, self.start + self.size)

    def column(self, bias: Tensor | None) -> Tensor:
        """What is added to each column, [blocks, block]: the bias, and ``MASKED`` where another tile has it."""
        values = torch.zeros(self.size) if bias is None else bias.detach()[self.span].clone()
        values[: self.overlap] = MASKED
        return values.view(-1, self.block)

    def labels(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Labels [rows] as two factors of a mask: [rows, blocks] and [rows, block].

        Their outer product is ``MASKED`` in the column of a row's label and 0 elsewhere. Rows whose label lies in no
        column of this tile are all 0. So labels enter the engine as numbers of fp16, which has no integers.
        """
        column = target - self.start
        rows = ((column >= self.overlap) & (column < self.size)).nonzero().squeeze(1)
        column = column[rows]
        block = torch.zeros(len(target), self.size // self.block)
        place = torch.zeros(len(target), self.block)
        block[rows, column // self.block] = MASKED
        place[rows, column % self.block] = 1.0
        return block, place


@dataclass(frozen=True)
class Tiling:
    """Equal tiles over the vocabulary, and equal chunks of ``rows`` tokens, the last one padded."""

    tiles: tuple[Tile, ...]
    rows: int
    tokens: int

    @classmethod
    def plan(
        cls,
        tokens: int,
        vocabulary: int,
        longest: int,
        cost: Callable[[Cut], float] = lambda cut: cut.runs,
    ) -> Tiling:
        """The tiles of least cost, of at most ``longest`` columns, in chunks of at most as many rows.

        Tiles are whole blocks; the last one ends with the vocabulary.
        """
        block = min(BLOCK, vocabulary)
        fewest = -(-vocabulary // (longest // block * block))
        cuts = []
        for count in range(fewest, MORE * fewest + 1):
            size = -(-vocabulary // (count * block)) * block
            if size <= vocabulary:
                chunks = -(-tokens // max(1, min(longest, ELEMENTS // size)))
                cuts.append(Cut(count, size, chunks, -(-tokens // chunks)))
        cut = min(cuts, key=cost)
        starts = [min(i * cut.columns, vocabulary - cut.columns) for i in range(cut.tiles)]
        tiles = tuple(Tile(start, cut.columns, i * cut.columns - start, block) for i, start in enumerate(starts))
        return cls(tiles, cut.rows, tokens)

    @property
    def overlaps(self) -> bool:
        """Whether a column is in two tiles."""
        return any(tile.overlap for tile in self.tiles)

    @property
    def padded(self) -> int:
        """Rows of all chunks together."""
        return -(-self.tokens // self.rows) * self.rows

    @property
    def runs(self) -> int:
        """Runs of a program: one for each chunk and tile."""
        return self.padded // self.rows * len(self.tiles)

    def chunks(self) -> Iterator[slice]:
        """The rows of each chunk."""
        for start in range(0, self.tokens, self.rows):
            yield slice(start, start + self.rows)

    def cut(self, x: Tensor, rows: slice, fill: float = 0) -> Tensor:
        """A chunk's rows of a tensor [tokens, ...], padded with ``fill``."""
        part = x.detach()[rows]
        missing = self.rows - len(part)
        return torch.cat([part, part.new_full((missing, *part.shape[1:]), fill)]) if missing else part
