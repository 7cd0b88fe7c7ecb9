"""What the engine makes of infinities and NaN, operation by operation, and of large values in slices on m1 and m2."""

import math

import pytest
import torch

from anew.chips import load_chip
from anew.device.base import INFINITE_PRODUCT
from anew.device.emulator.engine import EmulatedEngine
from anew.device.emulator.executor import Executable
from anew.device.emulator.fused import binary, finish_product_, scale
from anew.device.emulator.kernels import Arithmetic
from anew.mil import Builder, print_program

INF, NAN = math.inf, math.nan


def run(graph, *operands, exact=True, slice_limit=INF):
    """The results of a function of tensors on the emulated engine."""
    builder = Builder()
    names = [f"x{i}" for i in range(len(operands))]
    inputs = [builder.input(name, tuple(x.shape)) for name, x in zip(names, operands, strict=True)]
    function = builder.function([graph(builder, *inputs)])
    (output,) = function.outputs
    bindings = {name: x.half() for name, x in zip(names, operands, strict=True)}
    bindings[output.name] = torch.empty(output.shape).half()
    Executable(function, Arithmetic(exact=exact, winograd=False, slice_limit=slice_limit)).run(bindings)
    return bindings[output.name].float()


def elementwise(kind, *rows):
    names = ("x", "y")[: len(rows)]
    graph = lambda b, *v: b.op(kind, **dict(zip(names, v, strict=True)))  # noqa: E731
    return run(graph, *(torch.tensor([row]) for row in rows))[0].tolist()


def test_infinity_times_a_number_is_finite():
    found = elementwise("mul", [INF, INF, -INF, 2.0, 300.0], [1.0, -3.0, 0.5, INF, 300.0])
    assert found == [INFINITE_PRODUCT, -INFINITE_PRODUCT, -INFINITE_PRODUCT, INFINITE_PRODUCT, INF]


def test_infinity_times_zero_is_zero():
    assert elementwise("mul", [INF, 0.0], [0.0, -INF]) == [0, 0]


@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (1, 3), (4, 3)])
def test_a_product_that_broadcasts_has_the_same_infinities(shape):
    x = torch.tensor([1.0, -2.0, 0.0, INF]).view(4, 1).expand(4, 3).contiguous()
    y = torch.full(shape, INF)
    y[..., 0] = 2.0
    assert torch.equal(binary("mul", x, y), binary("mul", x, y.expand(4, 3).contiguous()))


def test_operand_scales_and_inverses_obey_it_too():
    x = torch.tensor([INF, -INF, 3.0])
    out, largest = scale(x, 2.0)
    assert out.tolist() == [INFINITE_PRODUCT, -INFINITE_PRODUCT, 6.0]
    assert largest == INF
    sums = torch.tensor([40000.0, 2.0])
    assert finish_product_(sums, 0.5) == INF
    assert sums.tolist() == [INFINITE_PRODUCT, 1.0]


@pytest.mark.parametrize(
    ("kind", "x", "y", "result"),
    [
        ("add", INF, -INF, 0.0),
        ("sub", INF, INF, 0.0),
        ("add", INF, 1.0, INF),
        ("add", 65504.0, 65504.0, INF),
        ("maximum", INF, 1.0, INF),
        ("minimum", -INF, 1.0, -INF),
        ("real_div", 0.0, 0.0, 0.0),
        ("real_div", 1.0, 0.0, INF),
        ("real_div", INF, INF, 0.0),
    ],
)
def test_two_operands(kind, x, y, result):
    assert elementwise(kind, [x], [y]) == [result]


@pytest.mark.parametrize(
    ("kind", "result"), [("abs", INF), ("relu", INF), ("sigmoid", 1.0), ("tanh", 1.0), ("erf", 1.0), ("exp", INF)]
)
def test_nan_comes_in_as_infinity(kind, result):
    assert elementwise(kind, [NAN, INF]) == [result, result]


@pytest.mark.parametrize("exact", [True, False])
def test_a_matmul_never_gives_nan(exact):
    graph = lambda b, x, y: b.op("matmul", x=x, y=y, transpose_x=False, transpose_y=False)  # noqa: E731
    x = torch.tensor([[INF, 1.0], [2.0, 3.0]])
    found = run(graph, x, torch.tensor([[1.0, 0.0], [-INF, 2.0]]), exact=exact)
    assert found.tolist() == [[0, 0], [-INF, 6]]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("reduced", ["product", "value"])
def test_an_overflow_is_seen_in_the_maximum_that_a_program_reports(exact, reduced):
    def graph(b, x, y):
        product = b.op("matmul", x=x, y=y, transpose_x=False, transpose_y=False)
        value = product if reduced == "product" else b.op("add", x=b.op("mul", x=x, y=x), y=x)
        return b.op("reduce_max", x=b.op("abs", x=value), axes=[0, 1], keep_dims=True)

    assert run(graph, torch.full((2, 2), -300.0), torch.full((2, 2), 300.0), exact=exact).item() == INF


@pytest.mark.parametrize(("last", "first"), [((0, 1), (0, 0)), ((1, 2), (1, 0)), ((1, 3), (0, 0))])
def test_a_slice_from_inside_the_last_axis_loses_what_is_beyond_the_limit(last, first):
    row = [4094.0, 4096.0, -4096.0, -4094.0]
    x = torch.tensor([row, row])
    begin = [first[0], last[0]]
    graph = lambda b, v: b.op("slice_by_size", x=v, begin=begin, size=[1, last[1]])  # noqa: E731
    kept = torch.tensor(row[last[0] : last[0] + last[1]])
    assert torch.equal(run(graph, x)[0], kept)
    lost = kept.masked_fill(kept > 4094, INF).masked_fill(kept < -4094, -INF) if last[0] else kept
    assert torch.equal(run(graph, x, slice_limit=4094.0)[0], lost)


def test_a_slice_along_another_axis_loses_nothing():
    x = torch.full((3, 2), 60000.0).half().float()
    graph = lambda b, v: b.op("slice_by_size", x=v, begin=[1, 0], size=[2, 2])  # noqa: E731
    assert torch.equal(run(graph, x, slice_limit=4094.0), x[1:])


def test_the_other_slices_of_the_last_axis_lose_it_too():
    x = torch.tensor([[5000.0, 5000.0, -5000.0, 5000.0]])
    indexed = lambda b, v: b.op("slice_by_index", x=v, begin=[0, -2], end=[1, 4])  # noqa: E731
    assert run(indexed, x, slice_limit=4094.0).tolist() == [[-INF, INF]]
    whole = lambda b, v: b.op("slice_by_index", x=v, begin=[0, 0], end=[1, 4])  # noqa: E731
    assert torch.equal(run(whole, x, slice_limit=4094.0), torch.tensor([[5000.0, 5000.0, -5000.0, 5000.0]]).half())

    def joined(b, v):
        left, right = b.results("split", x=v, num_splits=2, axis=1)
        return b.op("concat", values=(right, left), axis=1, interleave=False)

    assert run(joined, x, slice_limit=4094.0).tolist() == [[-INF, INF, 5000, 5000]]


@pytest.mark.parametrize(("chip", "value"), [("m1", INF), ("m2", INF), ("m3", 5000.0), ("m4", 5000.0), ("m5", 5000.0)])
def test_which_chips_lose_it(chip, value):
    builder = Builder()
    part = builder.op("slice_by_size", x=builder.input("x", (1, 64)), begin=[0, 32], size=[1, 32])
    engine = EmulatedEngine(load_chip(chip))
    operation = engine.compile(*print_program(builder.program([part]))).operation()
    buffers = {name: engine.buffers.lease(port.type.shape) for name, port in operation.program.ports.items()}
    buffers["x"].fill_(5000.0)
    operation.bind(buffers)
    operation.execute()
    assert (buffers[part.name] == value).all()
