"""Turn ``add(pad(a), pad(b))`` with zeros that complement each other into ``concat(a, b)``.

Autograd makes that pair from every tensor of which two slices were used, such as the halves of rotary embeddings.
"""

from __future__ import annotations

from anew.compiler.passes.eliminate_dead import eliminate_dead
from anew.compiler.passes.rewriter import Rewriter
from anew.mil import Function, Op, Value


def merge_pads(function: Function) -> Function:
    """Return the function with complementary pads merged."""
    pads = {op.output: op for op in function.ops if op.kind == "pad"}
    new = Rewriter(function)
    for op in function.ops:
        halves = _halves(op, pads)
        if halves is None:
            new.copy(op)
            continue
        axis, first, second = halves
        new.values[op.output] = new.builder.op("concat", values=(new[first], new[second]), axis=axis, interleave=False)
    return eliminate_dead(new.finish([new[v] for v in function.outputs]))


def _halves(op: Op, pads: dict[Value, Op]) -> tuple[int, Value, Value] | None:
    """The axis and the two unpadded values in order, when ``op`` adds two complementary pads."""
    if op.kind != "add":
        return None
    sides = [pads[v] for v in op.operands() if v in pads]
    if len(sides) != 2 or sides[0].output.shape != sides[1].output.shape:
        return None
    spans = [_span(pad) for pad in sides]
    axis = spans[0][1]
    if axis is None or axis != spans[1][1]:
        return None
    first, second = sorted(spans, key=lambda span: span[2])
    fits = first[2] == 0 and first[3] == second[0].shape[axis] and second[2] == first[0].shape[axis]
    return (axis, first[0], second[0]) if fits else None


def _span(pad: Op) -> tuple[Value, int | None, int, int]:
    """What a pad pads: the value, the one padded axis (None if several), the zeros before and after."""
    x, amounts, fill = pad.inputs["x"], pad.inputs["pad"], pad.inputs["constant_val"]
    assert isinstance(x, Value)
    assert isinstance(amounts, Value)
    assert isinstance(fill, Value)
    pairs = list(zip(amounts.const[::2], amounts.const[1::2], strict=True))
    padded = [i for i, pair in enumerate(pairs) if pair != (0, 0)]
    if len(padded) != 1 or fill.const != 0:
        return x, None, 0, 0
    return x, padded[0], *pairs[padded[0]]
