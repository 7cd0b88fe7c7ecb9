"""What the backward program computes again: its text, the prices that decide, and the numbers that stay the same."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from anew.frontend import recompute
from anew.frontend.options import Options
from anew.frontend.scales import INTERVAL
from anew.frontend.session import session_for
from anew.projection import Work, read_rates

GOLDEN = Path(__file__).parent.parent / "golden"
STRICT = {"strict": True, "device": "emulator", "chip": "m4"}

pytestmark = pytest.mark.usefixtures("fresh")


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight(*shape, seed=0):
    return nn.Parameter(numbers(*shape, seed=seed) / shape[0] ** 0.5)


GAIN, UP, GATE, DOWN = weight(32, seed=1), weight(32, 48, seed=2), weight(32, 48, seed=3), weight(48, 32, seed=4)


def gained(x):
    """The operand of a product is a weight times what is saved: one pass."""
    return F.rms_norm(x, (32,), GAIN, 1e-5) @ UP


def gated(x):
    """silu saves two tensors that follow from one; its product with another is measured if it is computed again."""
    return (F.silu(x @ GATE) * (x @ UP)) @ DOWN


CASES = {"gained": gained, "gated": gated}


def step(function, **options):
    """The result of a function and the gradients of its operand and weights."""
    parameters = (GAIN, UP, GATE, DOWN)
    for p in parameters:
        p.grad = None
    x = numbers(8, 32, seed=9).requires_grad_()
    y = torch.compile(function, backend="anew", dynamic=False, options=STRICT | options)(x)
    y.backward(numbers(*y.shape, seed=5))
    return [y.detach(), x.grad, *(p.grad for p in parameters if p.grad is not None)]


def plans(**options):
    """The forward and the backward plan of the only region."""
    return session_for(Options.parse(STRICT | options)).plans


def saved(**options):
    """How many tensors the forward saves that it computes, and the elements of each."""
    forward, _ = plans(**options)
    return sorted(torch.Size(port.shape).numel() for port in forward.outputs if port.saved)


def at_prices(monkeypatch, **seconds):
    """Let units of work cost this many seconds, and all others what they cost on the m4."""
    rates = read_rates("m4")
    prices = dataclasses.replace(rates, seconds=dataclasses.replace(rates.seconds, **seconds))
    monkeypatch.setattr(recompute, "rates_of", lambda chip: prices)


def keep_all(monkeypatch):
    monkeypatch.setattr(recompute, "rates_of", lambda chip: None)


@pytest.mark.parametrize("name", CASES)
def test_golden_text_of_the_backward(name):
    step(CASES[name])
    _, backward = plans()
    assert backward.text == (GOLDEN / f"recompute_{name}.mil").read_text()


def test_a_weight_times_a_saved_tensor_is_computed_again():
    step(gained)
    assert saved() == [8, 256]  # the norm's two results


def test_half_of_its_argument_is_saved_in_the_place_of_what_silu_gives():
    step(gated)
    assert saved() == [384, 384]
    assert [plan.operations["tanh"] for plan in plans()] == [1, 1]


def test_saving_half_of_a_product_takes_no_pass_of_the_forward(fresh, monkeypatch):
    step(gated)
    forward, _ = plans()
    fresh()
    keep_all(monkeypatch)
    step(gated)
    assert forward.operations == plans()[0].operations


def test_where_passes_are_dear_everything_is_saved(monkeypatch):
    at_prices(monkeypatch, elementwise=1.0)
    step(gated)
    assert saved() == [384] * 4


def test_where_a_saved_tensor_costs_two_passes_one_pass_is_cheaper_and_three_are_not(monkeypatch, fresh):
    streamed = 2 * 2 * read_rates("m4").seconds.weight_bytes
    at_prices(monkeypatch, elementwise=streamed / 2, fetched=0.0)
    step(gained)
    assert saved() == [8, 256]
    fresh()
    step(gated)
    assert saved() == [384] * 3  # all but the product: two results of silu would be computed for one that is saved


def test_a_chip_that_nobody_measured_saves_everything():
    step(gated, chip="m3")
    assert saved(chip="m3") == [384] * 4


def test_a_result_of_the_model_is_not_computed_again():
    def f(x):
        normed = F.rms_norm(x, (32,), GAIN, 1e-5)
        return normed @ UP, normed

    x = numbers(8, 32).requires_grad_()
    projected, normed = torch.compile(f, backend="anew", dynamic=False, options=STRICT)(x)
    (projected.sum() + normed.sum()).backward()
    _, backward = plans()
    assert sum(port.shape == (8, 32) and port.kind == "activation" for port in backward.inputs) == 2


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("numerics", ["exact", "fast"])
def test_gradients_are_those_of_saved_tensors_to_the_bit(name, numerics, fresh, monkeypatch):
    computed = step(CASES[name], numerics=numerics)
    spared = saved(numerics=numerics)
    fresh()
    keep_all(monkeypatch)
    kept = step(CASES[name], numerics=numerics)
    assert sum(spared) < sum(saved(numerics=numerics))
    for a, b in zip(computed, kept, strict=True):
        assert torch.equal(a, b)


def test_only_what_the_prices_counted_is_measured(monkeypatch, fresh):
    """A weight times a saved tensor has a bound, and gate times up has none: its two passes are in the price."""
    measured = {}
    for name, function in CASES.items():
        for kept in (False, True):
            fresh()
            with monkeypatch.context() as patched:
                if kept:
                    keep_all(patched)
                step(function)
            measured[name, kept] = plans()[1].scales.maxima_rows
    assert measured["gained", False] == measured["gained", True]
    assert measured["gated", False] == measured["gated", True] + 1


def test_what_is_drawn_at_random_is_not_drawn_again():
    def f(x):
        return F.dropout(F.silu(x @ GATE) * (x @ UP), 0.5) @ DOWN

    def run(function):
        x = numbers(8, 32).requires_grad_()
        torch.manual_seed(3)
        function(x).sum().backward()
        return x.grad

    ours = run(torch.compile(f, backend="anew", dynamic=False, options=STRICT))
    reference = run(f)
    assert (ours - reference).norm() <= 4e-3 * reference.norm()


def test_what_is_checkpointed_is_computed_as_before():
    def f(x):
        return checkpoint(gated, x, use_reentrant=False)

    for ours, reference in zip(step(f), step(gated), strict=True):
        assert (ours - reference).norm() <= 4e-3 * reference.norm()


def test_the_gain_is_that_of_the_counted_work():
    step(gated)
    (gain,) = session_for(Options.parse(STRICT)).gains
    rates = read_rates("m4")
    # of four tensors two are saved; tanh, two more of silu's, the product, and at times the two that measure it
    spared = 4 * (rates.seconds.weight_bytes + rates.seconds.fetched) * 2 * 384
    assert gain.elements == 2 * 384
    assert gain.milliseconds == pytest.approx(
        1e3 * (spared - rates.time(Work(elementwise=(4 + 2 / INTERVAL) * 384))), rel=0.01
    )
    assert "computed again" in str(gain)
