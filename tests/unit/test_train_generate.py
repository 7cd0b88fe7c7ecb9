"""Sampling: one shape, seeded, never an id that the tokenizer lacks."""

from types import SimpleNamespace

import torch
from torch import nn

from anew.train.generate import decode, generate, printable, prompt_from


class Successor(nn.Module):
    """Prefers the token after the last one, and remembers the shapes it saw."""

    def __init__(self, sharpness):
        super().__init__()
        self.sharpness = sharpness
        self.shapes = set()

    def forward(self, input_ids):
        self.shapes.add(tuple(input_ids.shape))
        logits = self.sharpness * torch.eye(8)[(input_ids + 1) % 8]
        return SimpleNamespace(logits=logits)


def test_the_context_is_padded_then_truncated_to_one_shape():
    model = Successor(sharpness=1000.0)
    ids = generate(model, torch.tensor([0, 1]), 3, seq_len=4, vocab_size=8, seed=0, new_tokens=5)
    assert ids.tolist() == [[0, 1, 2, 3, 4, 5, 6]] * 3
    assert model.shapes == {(3, 4)}
    assert model.training


def test_a_seed_decides_the_text_and_rows_differ():
    def draw(seed):
        return generate(Successor(0.0), torch.tensor([0]), 4, 8, 8, seed, new_tokens=20)

    assert draw(1).equal(draw(1))
    assert not draw(1).equal(draw(2))
    assert len({tuple(row) for row in draw(1).tolist()}) == 4


def test_ids_beyond_the_tokenizer_are_not_drawn():
    ids = generate(Successor(0.0), torch.tensor([0]), 4, 8, vocab_size=3, seed=0, new_tokens=20)
    assert ids.max() == 2


def test_prompt_and_decoding():
    assert prompt_from("ding the rest of a long sentence that goes on") == "the rest of a long sentence that goes"
    assert prompt_from("word") == "word"
    tokenizer = SimpleNamespace(eos_token_id=0, decode=lambda ids: "".join(map(chr, ids)))
    assert decode(tokenizer, torch.tensor([65, 66, 0, 67])) == "AB"


def test_text_of_a_model_cannot_steer_the_terminal():
    assert printable("a\x1b[2J\x07b\x9bc\r\n\td é\x7f") == "a\ufffd[2J\ufffdb\ufffdc\ufffd\n\td é\ufffd"
