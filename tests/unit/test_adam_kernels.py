"""One step of the engine's Adam equals PyTorch's fused kernel on the same gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anew.chips import load_chip
from anew.device.null import NullDevice
from anew.device.transfer import load, measure, store
from anew.errors import AnewError
from anew.frontend.held import HeldGradients, Instances, Piece, Writes
from anew.frontend.staleness import StaleWarning
from anew.frontend.table_gradient import Part, TableGradient
from anew.frontend.weight_store import WeightStore
from anew.optim.shares import MOMENTS, shares
from anew.optim.step import Step
from anew.optim.update import Gradient, Rule, update

DEVICE = NullDevice(load_chip("m4"))
#: PyTorch's kernel rounds as its compiler saw fit; where that fuses other products than ours, weights differ so much.
ULP = 2.0**-22


def held(x: Tensor, exponent: int) -> Piece:
    """A gradient as the engine leaves it."""
    buffer = DEVICE.buffers.lease(tuple(x.shape))
    store(buffer, x, -exponent)
    return Piece(buffer, exponent, measure(buffer)[1] * 4.0**exponent)


@st.composite
def gradients(draw: st.DrawFn) -> tuple[int, int, int, bool, int]:
    return (
        draw(st.integers(1, 70)),
        draw(st.integers(1, 1100)),
        draw(st.integers(0, 2)),
        draw(st.booleans()),
        draw(st.integers(-20, 10)),
    )


@settings(max_examples=30, deadline=None)
@given(
    gradients(),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([(0.9, 0.95), (0.4, 0.999)]),
    st.booleans(),
    st.sampled_from([1.0, 0.37]),
    st.sampled_from([1, 1000]),
)
def test_steps_are_those_of_torch(shape, decay, betas, decoupled, clip, first) -> None:
    rows, columns, pieces, dense, exponent = shape
    generator = torch.Generator().manual_seed(rows * columns)
    wanted = torch.nn.Parameter(torch.randn(rows, columns, generator=generator))
    found = torch.nn.Parameter(wanted.detach().clone())
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = kind([wanted], lr=1e-3, betas=betas, weight_decay=decay, fused=True)
    state = {name: torch.zeros(rows, columns) for name in ("exp_avg", "exp_avg_sq")}
    optimizer.state[wanted] = {"step": torch.tensor(first - 1.0)} | {k: x.clone() for k, x in state.items()}
    rule = Rule(*betas, 1e-8, 1e-3, decay, decoupled, clip)
    for step in range(first, first + 3):
        terms = [torch.randn(rows, columns, generator=generator) * 2.0**exponent for _ in range(3)]
        gradient = Gradient(terms[0] if dense else None, [held(x, exponent) for x in terms[1 : 1 + pieces]])
        total = terms[0].clone() if dense else torch.zeros(rows, columns)
        for piece in gradient.pieces:
            total += load(piece.buffer, piece.exponent)[0]
        assert gradient.squares(found) == pytest.approx(float(total.double().square().sum()), rel=1e-6)
        wanted.grad = total * clip
        optimizer.step()
        update(found, state, gradient, rule.numbers(step), WeightStore(DEVICE))
        for mine, theirs in ((found, wanted), *((state[k], optimizer.state[wanted][k]) for k in state)):
            torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=ULP, atol=1e-37)


@pytest.mark.parametrize("terms", [1, 2])
def test_a_tables_gradient_is_that_of_the_float32_table(terms) -> None:
    generator = torch.Generator().manual_seed(terms)
    table, found = torch.randn(40, 96, generator=generator), HeldGradients()
    found.hold(table)
    parts = [Part(table[:24], 0, 0), Part(table[16:], 16, 8)]
    wanted = torch.zeros(40, 96)
    for part in parts:
        for exponent in range(terms):
            x = torch.randn(24, 96, generator=generator)
            x[: part.overlap] = 0.0
            part.pieces.append(held(x, exponent))
            wanted[part.rows] += load(part.pieces[-1].buffer, exponent)[0][part.overlap :]
    gradient = TableGradient(table, parts)
    for ids, alpha in (([39, 3, 3, 20], -1.0), ([3, 25, 0], 1e6)):  # fp16 has no room for some
        rows = torch.randn(len(ids), 96, generator=generator)
        gradient.add(torch.tensor(ids), rows, alpha)
        wanted.index_add_(0, torch.tensor(ids), rows, alpha=alpha)
    assert torch.equal(gradient.dense(), wanted)
    found.add_table(table, gradient)
    taken = shares(table, found)
    squares = sum(share.squares() for share in taken)
    assert squares == pytest.approx(float(wanted.double().square().sum()), rel=1e-9)
    rule, state = Rule(0.9, 0.95, 1e-8, 1e-3, 0.1, True, 0.5), [torch.zeros(2, 40, 96) for _ in range(2)]
    other = table.clone()
    update(other, dict(zip(MOMENTS, state[0], strict=True)), Gradient(wanted, []), rule.numbers(1), WeightStore(DEVICE))
    for share in taken:
        share.step(dict(zip(MOMENTS, state[1], strict=True)), rule.numbers(1), WeightStore(DEVICE))
    assert torch.equal(table, other)
    assert torch.equal(*state)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 2), st.booleans(), st.booleans(), st.lists(st.integers(0, 39), min_size=1, max_size=12, unique=True)
)
def test_rows_ahead_of_a_step_are_what_it_leaves(terms, in_tiles, in_rows, ids) -> None:
    """Before any part of it is taken, between two, and afterwards."""
    generator = torch.Generator().manual_seed(len(ids) + terms)
    table, holder = torch.randn(40, 96, generator=generator), HeldGradients()
    holder.hold(table)
    spans = [(0, 24, 0), (16, 40, 8)] if in_tiles else [(0, 40, 0)]
    parts = [Part(table[start:stop], start, before) for start, stop, before in spans]
    for part in parts:
        part.pieces += [held(torch.randn(len(part.weight), 96, generator=generator), e) for e in range(terms)]
    gradient = TableGradient(table, parts)
    if in_rows:
        gradient.add(torch.tensor([3, 25, 3]), torch.randn(3, 96, generator=generator))
    holder.add_table(table, gradient)
    rule, state = Rule(0.9, 0.95, 1e-8, 1e-3, 0.1, True, 0.5), {name: torch.rand(40, 96) for name in MOMENTS}
    step, numbers = Step(table, shares(table, holder), state, rule.numbers(2), WeightStore(DEVICE)), torch.tensor(ids)
    before, found = table.clone(), [step.ahead(numbers)]
    assert torch.equal(table, before)
    for part in step.parts:
        part()
        found.append(step.ahead(numbers))
    assert not torch.equal(table, before)
    assert all(torch.equal(rows, table[numbers]) for rows in found)


@pytest.mark.parametrize("growth", [1.0, 40.0, 1e-3])
def test_the_buffer_holds_the_new_weight_under_a_fitting_exponent(growth) -> None:
    weights, parameter = WeightStore(DEVICE), torch.nn.Parameter(torch.rand(40, 96) + 0.5)
    entry = weights.upload("w", parameter, scaled=True, fresh=True)
    with torch.no_grad():
        parameter.mul_(growth)
    state = {name: torch.zeros(40, 96) for name in ("exp_avg", "exp_avg_sq")}
    rule = Rule(0.9, 0.95, 1e-8, 1e-3, 0.1, True, 1.0)
    update(parameter, state, Gradient(torch.randn(40, 96), []), rule.numbers(1), weights)
    assert weights.upload("w", parameter, scaled=True, fresh=True) is entry
    again = WeightStore(DEVICE).upload("w", parameter, scaled=True, fresh=True)
    assert (entry.exponent, entry.largest) == (again.exponent, again.largest)
    assert torch.equal(entry.buffer, again.buffer)


@pytest.mark.parametrize("write", ["in place", "dense data", "other memory"])
def test_a_weight_that_something_else_wrote_is_uploaded_again(write) -> None:
    weights, parameter = WeightStore(DEVICE), torch.nn.Parameter(torch.rand(40, 96))
    entry = weights.upload("w", parameter, scaled=True, fresh=True)
    step(parameter, weights)
    if write == "in place":
        with torch.no_grad():
            parameter[0, 0] = 3.0
    elif write == "dense data":
        parameter.data.mul_(3.0)
    else:
        parameter.data = parameter.data.clone()
    assert weights.upload("w", parameter, scaled=True, fresh=True) is not entry


def step(parameter: torch.nn.Parameter, weights: WeightStore) -> None:
    """A step of Adam from moments of zero."""
    state = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
    rule = Rule(0.9, 0.95, 1e-8, 1e-3, 0.1, True, 1.0)
    update(parameter, state, Gradient(torch.randn(parameter.shape), []), rule.numbers(1), weights)


def test_one_number_written_through_data_is_found_by_the_next_step() -> None:
    weights, parameter = WeightStore(DEVICE), torch.nn.Parameter(torch.rand(40, 96))
    weights.upload("w", parameter, scaled=True, fresh=True)
    step(parameter, weights)
    parameter.data[17, 31] = 0.123
    with pytest.warns(StaleWarning, match="written through its data"):
        step(parameter, weights)
    known = weights.upload("w", parameter, scaled=True, fresh=True)
    assert float(known.buffer[17, 31]) * 2.0**-known.exponent == pytest.approx(parameter[17, 31].item(), rel=1e-3)


def test_a_weight_beyond_fp16_is_left_to_the_upload_that_names_it() -> None:
    weights, parameter = WeightStore(DEVICE), torch.nn.Parameter(torch.rand(40, 96))
    weights.upload("w", parameter, scaled=False, fresh=True)
    with torch.no_grad():
        parameter[0, 0] = 1e6
    step(parameter, weights)
    with pytest.raises(AnewError, match=r"w \[40, 96\] reaches"):
        weights.upload("w", parameter, scaled=False, fresh=True)


def test_a_third_gradient_sums_all_in_float32() -> None:
    gradients, parameter = HeldGradients(), torch.nn.Parameter(torch.zeros(4, 64))
    gradients.hold(parameter)
    xs = [torch.randn(4, 64).half().float() for _ in range(3)]
    for x in xs[:2]:
        gradients.add(parameter, held(x, 0))
    assert parameter.grad is None
    gradients.add(parameter, held(xs[2], 0))
    assert not gradients.of(parameter)
    assert torch.equal(parameter.grad, xs[0] + xs[1] + xs[2])


def test_an_instance_is_known_by_the_weights_that_a_program_reads() -> None:
    instances = Instances()
    shared, *others = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    for other in others:
        instances.remember([shared, torch.zeros(1), other])
    assert instances.parameters({2: others[1]}) == {0: shared, 2: others[1]}
    assert instances.parameters({0: shared}) == {}  # it could be either
    assert instances.parameters({}) == {}


def test_an_error_in_the_thread_is_raised_by_what_waits() -> None:
    writes, parameters = Writes(), [torch.zeros(1), torch.zeros(1)]
    done: list[int] = []
    writes.start(parameters[:1], lambda: done.append(1 // 0))
    writes.start(parameters[1:], lambda: done.append(1))
    writes.wait([parameters[1]])
    with pytest.raises(ZeroDivisionError):
        writes.wait_all()
    writes.wait_all()
    assert done == [1]
    assert np.isfinite(done).all()
