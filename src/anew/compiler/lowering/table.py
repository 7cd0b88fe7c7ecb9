"""The table from ATen operations to the functions that lower them, and the context those work in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.fx import Node

from anew.chips import Chip
from anew.errors import AnewError
from anew.mil import Builder, OpDef, Value, lookup
from anew.mil.ops.registry import broadcast

#: Numbers from here on round to infinity in fp16, and those up to the second to 0.
FP16_OVERFLOW, FP16_VANISHES = 65520.0, 2.0**-25


class NotLowered(AnewError):
    """An operation cannot run on the engine; the message is the rule it breaks."""


class Lowering:
    """The builder of one program, with the helpers that several lowerings share."""

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.builder = Builder()
        self.comparisons: dict[Value, Value] = {}  # the comparison behind each tensor of 1 and 0
        self._expanded: dict[Value, Value] = {}  # what each expanded value was before

    def op(self, kind: str, **operands: Any) -> Value:
        """Append a MIL operation; raises NotLowered for a number that fp16 would turn into infinity or 0."""
        definition = lookup(kind)
        for param in definition.params:
            operand = operands.get(param.name)
            if param.kind == "tensor" and isinstance(operand, (int, float)):
                _check_number(operand)
        return self.builder.op(kind, **self._narrowed(definition, operands))

    def _narrowed(self, definition: OpDef, operands: dict[str, Any]) -> dict[str, Any]:
        """The operands without expansions that the operation does by itself, as elementwise operations broadcast."""
        if definition.family == "mac" or len(operands) < 2 or any(p.kind != "tensor" for p in definition.params):
            return operands
        for name, value in operands.items():
            source = self._expanded.get(value)
            if source is not None and _broadcast(operands | {name: source}) == _broadcast(operands):
                operands = operands | {name: source}
        return operands

    def expand(self, x: Value, shape: Sequence[int]) -> Value:
        """Repeat along axes of length one, and along new leading axes, to a shape."""
        source = out = self.reshape(x, (1,) * (len(shape) - x.type.rank) + x.shape)
        for axis, n in enumerate(shape):
            if n != out.shape[axis]:
                out = self._repeat(out, axis, n)
        if out is not source:
            self._expanded[out] = source
        return out

    def _repeat(self, x: Value, axis: int, n: int) -> Value:
        """Repeat an axis of one element: the engine's tile takes few factors, a product with ones takes any."""
        along = [1] * x.type.rank
        along[axis] = n
        if n in self.chip.tile_factors:
            return self.op("tile", x=x, reps=along)
        return self.op("mul", x=x, y=self.builder.array(np.ones(along), hint="ones"))

    def select(self, cond: Value, a: Value | float, b: Value | float) -> Value:
        """``a`` where a comparison holds and ``b`` elsewhere; MIL wants the result's shape of one of them."""
        shape = _broadcast({"x": cond, "a": a, "b": b})
        if _broadcast({"a": a, "b": b}) != shape:
            a = self.expand(a, shape) if isinstance(a, Value) else self.full(shape, a)
        return self.op("select", cond=cond, a=a, b=b)

    def full(self, shape: Sequence[int], number: float) -> Value:
        """A tensor of one number."""
        _check_number(number)
        return self.expand(self.builder.array(np.full((1,) * len(shape), number), "fill"), shape)

    def span(self, x: Value, axis: int, begin: int, end: int, fill: float = 0.0) -> Value:
        """The positions ``begin`` to ``end`` of one axis; those outside it are ``fill``."""
        length = x.shape[axis]
        first, last = max(begin, 0), min(end, length)
        if first >= last:
            return self.full([end - begin if i == axis else n for i, n in enumerate(x.shape)], fill)
        if (first, last) != (0, length):
            at = [first if i == axis else 0 for i in range(x.type.rank)]
            size = [last - first if i == axis else n for i, n in enumerate(x.shape)]
            x = self.op("slice_by_size", x=x, begin=at, size=size)
        if (first, last) != (begin, end):
            pad = [0] * (2 * x.type.rank)
            pad[2 * axis : 2 * axis + 2] = [first - begin, end - last]
            x = self.op("pad", x=x, pad=pad, mode="constant", constant_val=fill)
        return x

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """Reshape, or ``x`` itself when it has that shape; a reshape of a reshape becomes one."""
        if x.shape == tuple(shape):
            return x
        before = self.builder.producer(x)
        if before is not None and before.kind == "reshape":
            return self.reshape(_single(before.inputs["x"]), shape)
        return self.op("reshape", x=x, shape=shape)

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        """Transpose; undoes a transpose before it where the two cancel."""
        before = self.builder.producer(x)
        if before is not None and before.kind == "transpose":
            inner = _single(before.inputs["perm"]).const
            perm = [inner[p] for p in perm]
            x = _single(before.inputs["x"])
        if list(perm) == list(range(len(perm))):
            return x
        return self.op("transpose", x=x, perm=perm)

    def sqrt(self, x: Value) -> Value:
        """Square root; a power where the chip gives wrong values after ``sqrt``."""
        if self.chip.refuses("sqrt_then_broadcast"):
            return self.op("pow", x=x, y=0.5)
        return self.op("sqrt", x=x)

    def rsqrt(self, x: Value) -> Value:
        """Inverse square root; a power where the chip refuses ``rsqrt`` after a reduction."""
        if self.chip.refuses("rsqrt_after_reduce"):
            return self.op("pow", x=x, y=-0.5)
        return self.op("rsqrt", x=x, epsilon=0.0)

    def matmul(self, x: Value, y: Value) -> Value:
        """Matrix product over the last two axes; transposes of them fold into its flags."""
        x, transpose_x = self._flipped(x)
        y, transpose_y = self._flipped(y)
        return self.op("matmul", x=x, y=y, transpose_x=transpose_x, transpose_y=transpose_y)

    def _flipped(self, x: Value) -> tuple[Value, bool]:
        before = self.builder.producer(x)
        if before is None or before.kind != "transpose":
            return x, False
        perm, rank = list(_single(before.inputs["perm"]).const), x.type.rank
        flip = [*range(rank - 2), rank - 1, rank - 2]
        return (_single(before.inputs["x"]), True) if perm == flip else (x, False)


def _broadcast(operands: dict[str, Any]) -> tuple[int, ...]:
    shape: tuple[int, ...] = ()
    for name, operand in operands.items():
        if name != "cond":  # it has no part in the shape of what it selects
            shape = broadcast("operands", shape, operand.shape if isinstance(operand, Value) else ())
    return shape


def _check_number(x: float) -> None:
    kept = abs(x) < FP16_OVERFLOW and (x == 0 or abs(x) > FP16_VANISHES)
    if math.isfinite(x) and not kept:
        raise NotLowered(f"the number {x:.4g} becomes {'0' if abs(x) < 1 else 'infinite'} in fp16")


def _single(operand: Any) -> Value:
    assert isinstance(operand, Value)
    return operand


LowerFunction = Callable[..., Any]
TABLE: dict[Any, LowerFunction] = {}


def lowers(*targets: Any) -> Callable[[LowerFunction], LowerFunction]:
    """Register a function ``f(lowering, node, *args, **kwargs)`` for ATen overloads.

    Tensor arguments arrive as MIL values, everything else as in the graph. It returns a value, or a tuple of values for
    an operation with several results, or raises NotLowered.
    """

    def register(function: LowerFunction) -> LowerFunction:
        for target in targets:
            TABLE[target] = function
        return function

    return register


def shape_of(node: Node) -> tuple[int, ...]:
    """The static shape of a node's result."""
    return tuple(int(n) for n in node.meta["val"].shape)
