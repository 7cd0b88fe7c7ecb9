"""Each pass: golden text before and after, and the same meaning on the emulated engine."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anew.chips import load_chip
from anew.compiler.passes.common_subexpressions import common_subexpressions
from anew.compiler.passes.eliminate_dead import eliminate_dead
from anew.compiler.passes.merge_pads import merge_pads
from anew.compiler.passes.numbers_on_factors import numbers_on_factors
from anew.compiler.passes.scale_operands import scale_operands
from anew.compiler.passes.sink_reshapes import sink_reshapes
from anew.compiler.passes.turn_products import turn_products
from anew.device.emulator.engine import EmulatedEngine
from anew.frontend.scales import ScaleState
from anew.mil import Builder, Program, print_program
from anew.plan import MAXIMA, SCALES, UNKNOWN, Bound, Operand, Product, ScalePlan

GOLDEN = Path(__file__).parent.parent / "golden"
MATMUL = {"transpose_x": False, "transpose_y": False}


def text_of(function):
    return print_program(Program({"main": function}))[0]


def run(function, extra=None):
    """Run a function on the emulated engine over inputs that depend on the ports' names only; outputs in order."""
    engine = EmulatedEngine(load_chip("m4"))
    program = engine.compile(*print_program(Program({"main": function})))
    buffers = {port.name: engine.buffers.lease(port.type.shape) for port in program.ports.values()}
    for port in program.inputs:
        generator = torch.Generator().manual_seed(sum(map(ord, port.name)))
        buffers[port.name].copy_(torch.randn(port.type.shape, generator=generator))
    for name, value in (extra or {}).items():
        buffers[name].copy_(torch.from_numpy(value))
    operation = program.operation()
    operation.bind(buffers)
    operation.execute()
    return [buffers[port.name].float() for port in program.outputs]


def repeated():
    b = Builder()
    x, y = b.input("x", (2, 4)), b.input("y", (2, 4))
    first = b.op("add", x=b.op("exp", x=x), y=b.op("mul", x=y, y=0.5))
    again = b.op("add", x=b.op("exp", x=x), y=b.op("mul", x=y, y=0.5))
    other = b.op("mul", x=b.op("exp", x=x), y=y)
    turned = b.op("mul", x=y, y=b.op("exp", x=x))
    return b.function([b.op("sub", x=first, y=other), b.op("sub", x=again, y=turned)])


def dead():
    b = Builder()
    x, _unread = b.input("x", (2, 4)), b.input("unread", (3,))
    b.op("exp", x=b.op("mul", x=x, y=3.0))
    kept = b.op("tanh", x=x)
    b.op("softmax", x=kept, axis=-1)
    return b.function([kept])


def pads():
    b = Builder()
    x, y = b.input("x", (2, 3)), b.input("y", (2, 5))

    def pad(v, before, after):
        return b.op("pad", x=v, pad=[0, 0, before, after], mode="constant", constant_val=0.0)

    merged = b.op("add", x=pad(x, 5, 0), y=pad(y, 0, 3))
    overlapping = b.op("add", x=pad(x, 0, 2), y=pad(y, 0, 0))
    return b.function([merged, overlapping])


def products():
    """An activation times a weight, softmax, times an activation; the second product ends in an output."""
    b = Builder()
    x, weight, y = b.input("x", (4, 6)), b.input("weight", (8, 6)), b.input("y", (8, 5))
    scores = b.op("matmul", "scores", x=x, y=weight, transpose_x=False, transpose_y=True)
    weights = b.op("softmax", x=scores, axis=-1)
    mixed = b.op("matmul", "mixed", x=weights, y=y, **MATMUL)
    return b.function([b.op("reshape", x=mixed, shape=[2, 2, 5]), weights])


def layers():
    """Linear layers of [2, 3, 4] as autograd writes them, with arithmetic between them; one result is read twice."""
    b = Builder()
    x, weight, port = b.input("x", (6, 4)), b.input("weight", (4, 4)), b.input("port", (2, 3, 4))
    first, second = (
        b.op("reshape", x=b.op("matmul", x=x, y=weight, transpose_x=False, transpose_y=turned), shape=[2, 3, 4])
        for turned in (False, True)
    )
    total = b.op("tanh", x=b.op("add", x=first, y=b.op("mul", x=second, y=0.5)))
    flat = b.op("reshape", x=total, shape=[6, 4])
    twice = b.op("reshape", x=b.op("matmul", x=flat, y=weight, **MATMUL), shape=[2, 3, 4])
    gated = b.op("reshape", x=b.op("mul", x=b.op("sigmoid", x=twice), y=port), shape=[6, 4])
    back = b.op("reshape", x=b.op("reshape", x=port, shape=[6, 4]), shape=[2, 3, 4])
    return b.function([gated, b.op("exp", x=twice), back])


def numbers():
    """Scores that softmax alone reads, a product times a number, and an operand that is a value times a number."""
    b = Builder()
    x, y, mask = b.input("x", (4, 6)), b.input("y", (8, 6)), b.input("mask", (4, 8))
    scores = b.op("matmul", "scores", x=x, y=y, transpose_x=False, transpose_y=True)
    weights = b.op("softmax", x=b.op("add", x=scores, y=mask), axis=-1)
    halves = b.op("mul", x=b.op("matmul", "mixed", x=weights, y=y, **MATMUL), y=0.5)
    eighths = b.op("reshape", x=b.op("mul", x=b.op("exp", x=x), y=0.125), shape=[6, 4])
    return b.function([b.op("tanh", x=halves), b.op("matmul", "last", x=eighths, y=x, **MATMUL)])


def turns():
    """Keys transposed before scores and their gradient after, between reshapes; a transpose that is a result; heads."""
    b = Builder()
    q, k, heads = b.input("q", (6, 4, 3)), b.input("k", (2, 3, 5, 3)), b.input("heads", (2, 4, 3, 3))

    def turned(x):
        return b.op("transpose", x=x, perm=[*range(x.type.rank - 2), x.type.rank - 1, x.type.rank - 2])

    keys = b.op("reshape", x=turned(k), shape=[6, 3, 5])
    scores = b.op("matmul", "scores", x=q, y=keys, **MATMUL)
    slope = b.op("matmul", "slope", x=q, y=scores, transpose_x=True, transpose_y=False)
    gradient = turned(b.op("reshape", x=slope, shape=[2, 3, 3, 5]))
    shown = b.op("matmul", "shown", x=scores, y=turned(scores), **MATMUL)
    apart = b.op("reshape", x=b.op("transpose", x=heads, perm=[0, 2, 1, 3]), shape=[6, 4, 3])
    return b.function([gradient, shown, turned(shown), b.op("matmul", "last", x=apart, y=keys, **MATMUL)])


def rotated():
    """Sums of products times numbers: a power of two, another number, of a sum that is a result, of a large factor."""
    b = Builder()
    x, cos, sin = b.input("x", (8, 2, 6)), b.input("cos", (1, 6)), b.input("sin", (1, 6))

    def turned(number, large=sin):
        total = b.op("sub", x=b.op("mul", x=x, y=cos), y=b.op("mul", x=large, y=b.op("tanh", x=x)))
        return total, b.op("exp", x=b.op("mul", x=b.op("reshape", x=total, shape=[16, 6]), y=number))

    return b.function([turned(0.25)[1], turned(3.0)[1], *turned(0.5), turned(0.5, large=x)[1]])


PASSES = {
    "common_subexpressions": (repeated, common_subexpressions),
    "eliminate_dead": (dead, eliminate_dead),
    "merge_pads": (pads, merge_pads),
    "numbers_on_factors": (rotated, numbers_on_factors),
    "sink_reshapes": (layers, lambda f: eliminate_dead(sink_reshapes(f))),
    "turn_products": (turns, turn_products),
    "scale_operands_beside_numbers": (numbers, lambda f: scale_operands(f, set(), [0, 1]).function),
    "scale_operands_lean": (products, lambda f: scale_operands(f, {"weight"}, [0, 1], frozenset({0})).function),
    "scale_operands": (products, lambda f: scale_operands(f, {"weight"}, [0, 1]).function),
}


@pytest.mark.parametrize("name", PASSES)
def test_golden_text(name):
    make, change = PASSES[name]
    function = make()
    assert text_of(function) == (GOLDEN / f"{name}.before.mil").read_text()
    assert text_of(change(function)) == (GOLDEN / f"{name}.after.mil").read_text()
    assert text_of(function) == (GOLDEN / f"{name}.before.mil").read_text()  # a pass leaves its input as it was


@pytest.mark.parametrize(
    "name",
    ["common_subexpressions", "eliminate_dead", "merge_pads", "numbers_on_factors", "sink_reshapes", "turn_products"],
)
def test_meaning_is_kept(name):
    make, change = PASSES[name]
    for before, after in zip(run(make()), run(change(make())), strict=True):
        assert torch.equal(before, after)


def test_common_subexpressions_counts():
    kinds = [op.kind for op in common_subexpressions(repeated()).ops]
    assert [kinds.count(k) for k in ("exp", "add", "mul", "sub")] == [1, 1, 3, 2]


@pytest.mark.parametrize("change", [numbers_on_factors, turn_products])
def test_operations_on_constants_alone_stay(change):
    b = Builder()
    x, constant = b.input("x", (2, 4)), b.array(np.arange(8.0).reshape(2, 4), "c")
    half = b.op(
        "mul",
        x=b.op("mul", x=constant, y=0.5),
        y=b.op("transpose", x=b.op("reshape", x=constant, shape=[4, 2]), perm=[1, 0]),
    )
    mean = b.op("reduce_mean", x=constant, axes=[-1], keep_dims=True)
    function = b.function([b.op("add", x=x, y=half), b.op("mul", x=b.op("mul", x=x, y=mean), y=0.5)])
    for before, after in zip(run(function), run(change(function)), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([0, 0, 5, 0], [0, 0, 0, 4]),  # together longer than the sum
        ([5, 0, 0, 0], [0, 0, 0, 3]),  # different axes
        ([0, 0, 3, 0], [0, 0, 0, 3]),  # overlap
        ([1, 0, 5, 0], [1, 0, 0, 3]),  # two axes
    ],
)
def test_pads_that_do_not_complement_each_other_stay(first, second):
    b = Builder()
    x, y = b.input("x", (2, 3)), b.input("y", (2, 5))
    values = [b.op("pad", x=v, pad=p, mode="constant", constant_val=0.0) for v, p in ((x, first), (y, second))]
    kept = merge_pads(b.function(values))
    assert [op.kind for op in kept.ops].count("pad") == 2
    if values[0].shape == values[1].shape:
        merged = merge_pads(b.function([b.op("add", x=values[0], y=values[1])]))
        assert [op.kind for op in merged.ops].count("concat") == 0


def test_pads_that_broadcast_against_each_other_stay():
    b = Builder()
    x, y = b.input("x", (2, 3)), b.input("y", (1, 5))
    sides = [
        b.op("pad", x=v, pad=p, mode="constant", constant_val=0.0) for v, p in ((x, [0, 0, 5, 0]), (y, [0, 0, 0, 3]))
    ]
    function = b.function([b.op("add", x=sides[0], y=sides[1])])
    assert torch.equal(*run(function), *run(merge_pads(function)))


def test_pads_with_another_fill_stay():
    b = Builder()
    x = b.input("x", (2, 4))
    sides = [b.op("pad", x=x, pad=p, mode="constant", constant_val=1.0) for p in ([0, 0, 4, 0], [0, 0, 0, 4])]
    merged = merge_pads(b.function([b.op("add", x=sides[0], y=sides[1])]))
    assert [op.kind for op in merged.ops].count("concat") == 0


def test_scales_divide_out_and_maxima_are_those_of_the_values():
    before = run(products())
    function, plan = (lambda s: (s.function, s.scales))(scale_operands(products(), {"weight"}, [0, 1]))
    factors = np.ones((plan.scale_rows, 1), np.float32)
    exponents = [3, 0, 0, 4]  # x, weight (by the host), softmax's result (which needs none), y
    for operand, exponent in zip(plan.operands, exponents, strict=True):
        if operand.row is not None:
            factors[operand.row] = 2.0**exponent
    factors[plan.products[0].inverse_row] = 2.0**-3
    after = dict(zip([v.name for v in function.outputs], run(function, {SCALES: factors}), strict=True))
    maxima = after.pop(MAXIMA).flatten()
    mixed, weights = after.values()
    assert list(maxima.shape) == [plan.maxima_rows] == [1]
    rows = {name: i for i, name in enumerate(["scores", "mixed", "weights", "x", "y"])}  # all but the first the host's
    assert plan.products[0].maximum_row == rows["scores"]
    assert plan.products[1].maximum_row == rows["mixed"]
    torch.testing.assert_close(weights, before[1], rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(mixed / 2.0**4, before[0], rtol=4e-3, atol=1e-3)
    bounds = [operand.bound for operand in plan.operands]
    assert bounds == [Bound.of(rows["x"]), UNKNOWN, Bound.number(1.0), Bound.of(rows["y"])]
    assert [operand.row is None for operand in plan.operands] == [False, True, True, False]
    assert [operand.lonely for operand in plan.operands] == [False, False, False, True]  # y, which meets softmax
    assert plan.result_rows == (rows["weights"],)


def scaled(make, weights=(), read=(0,)):
    b = Builder()
    return scale_operands(b.function(make(b)), set(weights), list(read))


def test_two_weights_multiplied_are_scaled_on_the_device():
    found = scaled(
        lambda b: [b.op("tanh", x=b.op("matmul", x=b.input("a", (3, 4)), y=b.input("b", (4, 3)), **MATMUL))], ("a", "b")
    )
    assert found.weight_operands == {}
    assert [operand.row for operand in found.scales.operands] == [0, 1]


def test_a_weight_read_by_another_operation_is_scaled_on_the_device():
    def make(b):
        x, w = b.input("x", (3, 4)), b.input("w", (4, 4))
        return [b.op("add", x=b.op("matmul", x=x, y=w, **MATMUL), y=b.op("reduce_sum", x=w, axes=[0], keep_dims=True))]

    assert scaled(make, ("w",)).weight_operands == {}


def test_a_product_that_stays_on_the_device_carries_no_scales():
    def make(b):
        return [b.op("matmul", x=b.input("x", (3, 4)), y=b.input("y", (4, 3)), **MATMUL)]

    assert scaled(make).output_products == {0: 0}
    kept = scaled(make, read=())
    assert kept.output_products == {}
    assert kept.scales.products == (Product(0, 1, 2, 0),)


def test_the_host_finds_the_maxima_of_a_function_without_products():
    found = scaled(lambda b: [b.op("exp", x=b.input("x", (3, 4)))])
    assert found.scales == ScalePlan((), (), (0,), 0, 0, 1)
    assert found.output_rows == {0: 0}
    assert [v.name for v in found.function.inputs] == ["x"]
    assert [v.name for v in found.function.outputs] == ["exp"]


def test_an_operand_shared_by_two_products_has_one_factor():
    def make(b):
        x, y = b.input("x", (4, 4)), b.input("y", (4, 4))
        return [b.op("matmul", x=x, y=y, **MATMUL), b.op("matmul", x=y, y=x, **MATMUL)]

    plan = scaled(make, read=(0, 1)).scales
    assert plan.operands == (Operand(0, Bound.of(2)), Operand(1, Bound.of(3)))
    assert [(p.left, p.right) for p in plan.products] == [(0, 1), (1, 0)]


def test_the_operands_of_a_convolution_are_scaled_as_those_of_a_product():
    """A weight that only a convolution reads is scaled on upload; a slice of the product carries its scales out."""

    def make(b):
        x, w = b.input("x", (1, 4, 6, 6)), b.input("w", (8, 4, 3, 3))
        window = {"strides": [1, 1], "pad_type": "valid", "pad": [0, 0, 0, 0], "dilations": [1, 1], "groups": 1}
        return [b.op("slice_by_size", x=b.op("conv", x=x, weight=w, **window), begin=[0] * 4, size=[1, 8, 4, 2])]

    found = scaled(make, ("w",))
    assert found.scales.operands == (Operand(0, Bound.of(1)), Operand(None))
    assert found.scales.products == (Product(0, 1, None, 0),)
    assert found.weight_operands == {"w": 1}
    assert found.output_products == {0: 0}
    assert [op.kind for op in found.function.ops].count("mul") == 1


def test_numbers_beside_scales_are_theirs_and_scores_have_none():
    before = run(numbers())
    found = scale_operands(numbers(), set(), [0, 1])
    plan = found.scales
    state = ScaleState(plan, [0 if o.row is None else 2 + o.row for o in plan.operands])
    results = run(found.function, {SCALES: state.factors()})
    after = dict(zip([v.name for v in found.function.outputs], results, strict=True))
    maxima = after.pop(MAXIMA).flatten()
    first, last = after.values()
    torch.testing.assert_close(first, before[0], rtol=4e-3, atol=1e-3)
    (product,) = [p for p in plan.products if p.maximum_row >= plan.maxima_rows]  # the host's
    torch.testing.assert_close(last * 2.0 ** -state.product_exponent(product), before[1], rtol=4e-3, atol=1e-3)
    assert [op.kind for op in found.function.ops].count("mul") == 4  # one for mixed, y, exp(x) and x
    assert sorted(o.number for o in plan.operands) == [0.125, *[1.0] * 5]
    assert sorted(p.number for p in plan.products) == [0.5, 1.0, 1.0]
    (eighths,) = [o for o in plan.operands if o.number == 0.125]
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(ord("x")))
    known = np.zeros(plan.maxima_rows + plan.found_rows)
    known[: plan.maxima_rows] = maxima
    assert eighths.bound.value(known) == pytest.approx(float(x.exp().max()) / 8, rel=1e-2)


def test_a_product_beside_a_number_keeps_its_inverse_a_normal_number():
    plan = scale_operands(numbers(), set(), [0, 1]).scales
    state = ScaleState(plan)
    known = np.full(plan.maxima_rows + plan.found_rows, 2.0**-12)
    for _ in range(8):
        if state.review(known) == "good":
            break
    factors = state.factors().astype(np.float64)
    assert ((factors >= 2.0**-14) & (factors <= 2.0**15)).all()
