"""A bare loop of torch.optim.AdamW, without a gradient scaler, follows plain fp32 step by step."""

import copy

import pytest

import anew
from evidence import bare_loop

STEPS = 15


@pytest.mark.usefixtures("fresh")
def test_fifteen_steps_follow_fp32(llama, monkeypatch):
    monkeypatch.setattr(bare_loop, "LENGTH", 32)
    net = llama(layers=2, dim=64, vocab_size=bare_loop.VOCABULARY, tie_word_embeddings=True)
    reference = bare_loop.losses(copy.deepcopy(net), STEPS)
    anew.compile(net, device="emulator", numerics="fast", strict=True)
    curve = bare_loop.losses(net, STEPS)
    assert reference[-1] < 0.9 * reference[0]
    assert bare_loop.deviation(curve, reference) < 0.01
    assert anew.statistics(net).dispatches >= STEPS * 2 * 2
