"""Programs that measure nothing: when they run, what they compute, and what sends a call back to those that measure."""

import pytest
import torch
from torch import nn

import anew
from anew.frontend.options import Options
from anew.frontend.scales import FIRST, GROWTH, INTERVAL
from anew.frontend.session import session_for
from anew.plan import MAXIMA, SCALES
from tests.emulator.training import compiled, gradients, reference, worst_error


@pytest.fixture(autouse=True)
def fresh():
    session_for.cache_clear()
    torch._dynamo.reset()


def session():
    return session_for(Options(device="emulator", strict=True))


def test_after_its_first_calls_a_layer_runs_a_program_without_maxima(llama):
    net = compiled(llama())
    wanted = reference(net)
    for _ in range(FIRST):
        measured = worst_error(gradients(net), wanted)
    assert session().lean_plans == []
    lean = worst_error(gradients(net), wanted)
    assert [plan.name for plan in session().lean_plans] == ["region 1 forward", "region 1 backward"]
    assert not any(MAXIMA in plan.text for plan in session().lean_plans)
    assert lean != measured  # another program
    assert lean < 1.3 * measured


def test_products_have_factors_only_where_they_need_them(llama):
    """Weights a thousand times smaller bring products near the grid of 2^-16."""
    net = llama()
    with torch.no_grad():
        for layer in net.model.layers:
            layer.mlp.down_proj.weight.mul_(1e-3)
    wanted = reference(net)
    compiled(net)
    for _ in range(FIRST):
        measured = worst_error(gradients(net), wanted)
    found = gradients(net)
    forward, backward = session().lean_plans
    for plan in (forward, backward):
        assert 0 < len(plan.scales.plain) < len(plan.scales.products)
        assert SCALES in plan.text
    assert worst_error(found, wanted) < 1.3 * measured


def test_one_call_in_so_many_measures(llama):
    net = compiled(llama(layers=1))
    runs = []
    for _ in range(2 * INTERVAL + 2):
        gradients(net)
        runs.append([state.calls % INTERVAL == 1 or state.calls <= FIRST for state in session().scales.states()])
    lean_forward, _ = session().lean_plans
    assert lean_forward.scales.plain
    assert session().statistics().rescaled == 0
    assert [i for i, measured in enumerate(runs) if all(measured)] == [*range(FIRST), INTERVAL, 2 * INTERVAL]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(32, 32)

    def forward(self, x):
        return x + torch.relu(self.inner(x))


def settled():
    """A compiled layer that runs its lean programs, with an input."""
    torch.manual_seed(0)
    layer = nn.Sequential(Residual())
    x = torch.randn(16, 32)
    anew.compile(layer, device="emulator", strict=True)
    for _ in range(FIRST + 1):
        call(layer, x)
    assert session().statistics().rescaled == 0
    assert len(session().lean_plans) == 2
    return layer, x


def call(layer, x):
    layer.zero_grad()
    y = layer(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in layer.parameters())]


def plain(layer, x):
    other = nn.Sequential(Residual()).double()
    other.load_state_dict(layer.state_dict())
    return call(other, x.double())


def agree(layer, x):
    for found, wanted in zip(call(layer, x), plain(layer, x), strict=True):
        assert float((found - wanted).norm() / wanted.norm()) < 0.01


@pytest.mark.parametrize("factor", [2 * GROWTH, 1000.0])
def test_results_that_grow_are_measured(factor):
    layer, x = settled()
    agree(layer, factor * x)
    assert session().statistics().rescaled >= 1  # the forward call was repeated


def test_an_overflow_in_a_lean_program_is_computed_again():
    layer, x = settled()
    with torch.no_grad():
        layer[0].inner.weight.mul_(15.0)  # at most 2.7, which is uploaded as it is
    factor = 50_000.0 / float(layer[0].inner(x).abs().max())
    agree(layer, factor * x)  # a product in fp16's range and beyond the array's
    assert session().statistics().rescaled >= 1


def test_a_weight_that_needs_an_exponent_now_has_one():
    layer, x = settled()
    for factor in (1e-3, 1e6):
        with torch.no_grad():
            layer[0].inner.weight.mul_(factor)
        agree(layer, x)
        agree(layer, x)


def test_larger_cotangents_keep_their_range():
    layer, x = settled()
    for factor in (1.0, 1e3, 1e-6):
        layer.zero_grad()
        (layer(x).square().sum() * factor).backward()
        wanted = plain(layer, x)[1]
        assert float((layer[0].inner.weight.grad / factor - wanted).norm() / wanted.norm()) < 0.01


def test_a_product_that_needed_scales_once_keeps_them():
    layer, x = settled()
    (before, _) = session().lean_plans
    with torch.no_grad():
        layer[0].inner.weight.mul_(1e-3)
    for _ in range(INTERVAL):
        agree(layer, x)
    with torch.no_grad():
        layer[0].inner.weight.mul_(1e3)
    for _ in range(INTERVAL):
        agree(layer, x)
    assert before.scales.plain == {0}
    assert all(not plan.scales.plain for plan in session().lean_plans[2:] if "forward" in plan.name)


def test_lean_programs_leave_room_for_others(llama, monkeypatch):
    net = compiled(llama())
    monkeypatch.setattr("anew.frontend.segment.SHARE", 0.0)
    for _ in range(FIRST + 1):
        gradients(net)
    assert session().lean_plans == []
    assert session().statistics().programs == 2


def test_states_go_on_in_another_process(llama):
    """The calls after a resume run the same programs on the same exponents."""
    net = compiled(llama())
    for _ in range(FIRST + 2):
        gradients(net)
    saved = session().scales.state_dict(net.named_parameters())
    wanted = [gradients(net) for _ in range(2)]
    session_for.cache_clear()
    torch._dynamo.reset()
    other = compiled(llama())
    session().scales.load_state_dict(other.named_parameters(), saved)
    for expected in wanted:
        found = gradients(other)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [plan.name.split()[2] for plan in session().lean_plans] == ["forward", "backward"]
