"""Causal attention in blocks of queries: its text, the prices that decide, what it spares, and that values stay."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from anew.frontend import attention_blocks, recompute, region
from anew.frontend.attention_blocks import Sizes
from anew.frontend.options import Options
from anew.frontend.session import session_for
from anew.mil import parse_program
from anew.projection import Work, read_rates
from anew.projection.count import work_of

GOLDEN = Path(__file__).parent.parent / "golden"
STRICT = {"strict": True, "device": "emulator", "chip": "m4"}
HEADS, SIZE = 4, 8

pytestmark = pytest.mark.usefixtures("fresh")


@pytest.fixture
def split(monkeypatch):
    """Let attention have so many blocks, or one, whichever is cheaper, however short they are."""

    def to(blocks):
        monkeypatch.setattr(attention_blocks, "BLOCKS", (1, blocks))
        monkeypatch.setattr(attention_blocks, "ROWS", 1)

    return to


def at_prices(monkeypatch, **seconds):
    """Let units of work cost this many seconds, and all others what they cost on the m4."""
    rates = read_rates("m4")
    prices = dataclasses.replace(rates, seconds=dataclasses.replace(rates.seconds, **seconds))
    monkeypatch.setattr(attention_blocks, "rates_of", lambda chip: prices)


def qkv(length, batch=2, groups=HEADS, keys=None, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, HEADS, length, SIZE)] + [(batch, groups, keys or length, SIZE)] * 2
    return [torch.randn(s, generator=generator) * scale for s in shapes]


def causal(q, k, v, **how):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, **how)


def grouped(q, k, v):
    return causal(q, k, v, enable_gqa=True)


def joined(q, k, v):
    """As in a layer: queries and keys are turned, heads lie side by side before and behind, what was mixed is saved."""
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    mixed = grouped(q * 0.75, k * 0.75, v).transpose(1, 2).flatten(2)
    return mixed * mixed


def checkpointed(q, k, v):
    return checkpoint(causal, q, k, v, use_reentrant=False)


def results(function, inputs):
    """The value of a function and the gradients of its inputs."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    torch.manual_seed(1)
    y = function(*inputs)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype))
    return [y.detach(), *(x.grad for x in inputs)]


def run(function, inputs, **options):
    return results(torch.compile(function, backend="anew", dynamic=False, options=STRICT | options), inputs)


def session(**options):
    return session_for(Options.parse(STRICT | options))


def scores(**options):
    """The elements of each softmax in the forward program."""
    plan = session(**options).plans[0]
    ops = parse_program(plan.text, plan.weights).function(None).ops
    return [op.output.type.numel for op in ops if op.kind == "softmax"]


def blocks_of(length, count, batch=2):
    rows = length // count
    return [batch * HEADS * rows * rows * (i + 1) for i in range(count)]


def errors(found, function, inputs):
    exact = results(function, [x.double() for x in inputs])
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]


def test_golden_text_of_the_forward(split):
    split(2)
    run(causal, qkv(8, batch=1))
    assert session().plans[0].text == (GOLDEN / "attention_blocks.mil").read_text()


@pytest.mark.parametrize(
    ("name", "count", "numerics"),
    [
        ("causal", 8, "exact"),
        ("causal", 4, "fast"),
        ("grouped", 4, "exact"),
        ("checkpointed", 2, "fast"),
        ("large", 2, "exact"),
        ("large", 8, "fast"),
    ],
)
def test_values_are_those_of_one_block_to_the_bit_and_gradients_as_exact(name, count, numerics, split, fresh):
    function = {"causal": causal, "grouped": grouped, "checkpointed": checkpointed, "large": causal}[name]
    inputs = qkv(16, groups=2 if name == "grouped" else HEADS, scale=8.0 if name == "large" else 1.0)
    split(count)
    found = run(function, inputs, numerics=numerics)
    assert scores(numerics=numerics) == blocks_of(16, count)
    fresh()
    split(1)
    whole = run(function, inputs, numerics=numerics)
    assert scores(numerics=numerics) == blocks_of(16, 1)
    assert torch.equal(found[0], whole[0])
    for ours, reference in zip(errors(found, function, inputs), errors(whole, function, inputs), strict=True):
        assert ours <= 1.5 * reference


def test_heads_side_by_side(split):
    split(4)
    inputs = qkv(32)
    assert max(errors(run(joined, inputs), joined, inputs)) <= 4e-3


def test_evaluation_is_in_blocks(split):
    split(4)
    inputs = qkv(16)
    with torch.no_grad():
        found = torch.compile(causal, backend="anew", dynamic=False, options=STRICT)(*inputs)
    assert scores() == blocks_of(16, 4)
    torch.testing.assert_close(found, causal(*inputs), rtol=4e-3, atol=4e-3)


OTHERS = {
    "odd length": (causal, {"length": 15}),
    "dropout": (lambda q, k, v: causal(q, k, v, dropout_p=0.25), {"length": 16}),
    "a mask": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.ones(16, 16).tril() > 0), {"length": 16}),
    "not causal": (F.scaled_dot_product_attention, {"length": 16}),
    "more keys": (causal, {"length": 16, "keys": 32}),
    "keys of all the batch": (lambda q, k, v: causal(q, k[:1], v[:1]), {"length": 16}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_attention_stays_whole(name, split):
    split(2)
    function, sizes = OTHERS[name]
    inputs = qkv(**sizes)
    found = run(function, inputs)
    assert len(scores()) == 1
    for a, b in zip(found, results(function, inputs), strict=True):
        assert (a - b).norm() <= 6e-3 * b.norm()


def test_no_block_is_shorter_than_is_worth_an_operation():
    run(causal, qkv(64, batch=1))
    assert scores() == blocks_of(64, 2, batch=1)


def test_a_chip_that_nobody_measured_has_one_block():
    run(causal, qkv(64), chip="m3")
    assert len(scores(chip="m3")) == 1


def test_a_chip_whose_softmax_takes_powers_of_2_has_no_block_that_ends_elsewhere(monkeypatch):
    monkeypatch.setattr(attention_blocks, "ROWS", 1)
    run(causal, qkv(16), switches={"softmax_power_of_2": "refuse"})
    assert scores(switches={"softmax_power_of_2": "refuse"}) == blocks_of(16, 2)


@pytest.mark.parametrize("chip", ["m1", "m2", "m3", "m4", "m5"])
def test_every_chip_takes_the_blocks(chip, split, monkeypatch):
    at_prices(monkeypatch)
    split(4)
    run(joined, qkv(16), chip=chip)
    assert scores(chip=chip) == blocks_of(16, 4)


def test_dear_softmax_takes_many_blocks_and_dear_additions_one(monkeypatch, fresh):
    monkeypatch.setattr(attention_blocks, "ROWS", 1)
    at_prices(monkeypatch, attention=1.0)
    run(causal, qkv(4))
    assert len(scores()) == 4
    fresh()
    at_prices(
        monkeypatch, elementwise=1.0
    )  # two blocks: 8 additions a key, for 2 passes over 1 score of 4, and 2 masks
    run(causal, qkv(4))
    assert len(scores()) == 1


def lowered(monkeypatch, function, inputs):
    """Forward and backward as they are lowered, without what measures and scales."""
    found, lower = [], region.lower_graph

    def keep(*args):
        found.append(lower(*args))
        return found[-1]

    monkeypatch.setattr(region, "lower_graph", keep)
    run(function, inputs)
    return found


@pytest.mark.parametrize("groups", [2, HEADS])
def test_the_work_that_prices_are_asked_for_is_what_is_counted(groups, split, fresh, monkeypatch):
    monkeypatch.setattr(recompute, "rates_of", lambda chip: None)

    def counted(count):
        fresh()
        split(count)
        programs = lowered(monkeypatch, joined, qkv(16, groups=groups))
        forward, _ = programs
        saved = sum(v.type.numel for i, v in enumerate(forward.function.outputs) if i in forward.saved)
        return sum((work_of(p.function) for p in programs), Work()), saved

    sizes = Sizes(2 * HEADS, 2 * groups, 16, SIZE, SIZE)
    (whole, all_saved), (parts, parts_saved) = counted(1), counted(4)
    expected = sizes.work(1, True) + sizes.work(4, True) * -1.0
    found = whole + parts * -1.0
    assert (found.matmul, found.attention) == (expected.matmul, expected.attention)
    assert all_saved - parts_saved == sizes.scores(1) - sizes.scores(4)
    assert found.weight_bytes + 4 * (all_saved - parts_saved) == expected.weight_bytes
    assert found.elementwise == expected.elementwise


def test_sums_of_softmax_s_gradient_are_of_features_once(split):
    split(4)
    run(joined, qkv(32))
    plan = session().plans[1]
    ops = parse_program(plan.text, plan.weights).function(None).ops
    assert [op.inputs["x"].type.numel for op in ops if op.kind == "reduce_sum"] == [2 * HEADS * 32 * SIZE]
    assert not any(op.kind == "pad" for op in ops)


def test_queries_keys_and_values_are_saved_once(split):
    split(4)
    run(joined, qkv(32))
    saved = [torch.Size(port.shape).numel() for port in session().plans[0].outputs if port.saved]
    assert sorted(saved) == [*blocks_of(32, 4), *[2 * HEADS * 32 * SIZE] * 4]  # with what was mixed


def test_the_gain_is_logged(split):
    split(4)
    run(causal, qkv(16))
    gain, *_ = session().gains
    sizes, rates = Sizes(2 * HEADS, 2 * HEADS, 16, SIZE, SIZE), read_rates("m4")
    assert gain.elements == 2 * HEADS * 16 * 16 * 3 // 8
    assert gain.milliseconds == pytest.approx(1e3 * (rates.time(sizes.work(1, True)) - rates.time(sizes.work(4, True))))
    assert "4 blocks of causal attention's queries" in str(gain)
