"""Which magnitudes a value cannot exceed, from those of others: what need not be measured.

A bound that is far above the magnitude would cost a matmul operand precision, so each comes with how far it may be. A
product of two values computed at run time has none, unless one is softmax: their peaks need not meet.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from anew.mil import Function, Op, Value
from anew.plan import Bound

#: How many times the magnitude a bound may be: what is known of an operand is that many times smaller than wanted.
LOOSEST = 16.0
#: A typical largest magnitude of numbers of variance 1.
PEAK = 6.0
#: How many times the magnitude the bound of softmax times a value may be, as their peaks need not meet.
APART = 8.0
#: Elements that one number of the smaller factor of a product meets, at least, for their magnitudes to be multiplied.
MEETS = 8

MOVEMENT = {"reshape", "transpose", "slice_by_size", "slice_by_index", "expand_dims", "squeeze", "tile"}
_KEEP = {*MOVEMENT, "abs", "relu", "reduce_max", "reduce_min", "reduce_mean"}
_WITHIN_ONE = {"softmax", "tanh", "sigmoid", "erf", "sin", "cos"}


@dataclass(frozen=True)
class Known:
    """A bound, and how many times the magnitude it may be."""

    bound: Bound[Hashable]
    loose: float = 1.0

    def times(self, other: Known) -> Known:
        """What is known of a product."""
        return Known(self.bound.times(other.bound), self.loose * other.loose)

    def plus(self, other: Known) -> Known:
        """What is known of a sum."""
        return Known(self.bound.plus(other.bound), 2.0 * max(self.loose, other.loose))


class Magnitudes:
    """Bounds of a function's values by the maxima of its ports (known to the host) and of its ``products``."""

    def __init__(self, function: Function, products: tuple[str, ...]) -> None:
        self.products = products
        self.producers = {v: op for op in function.ops for v in op.outputs}
        self.ports = set(function.inputs)
        self._known: dict[Value, Known | None] = {}

    def of(self, value: Value) -> Known | None:
        """What is known of a value's magnitude; factors of the bound are ports' names and results of products."""
        if value not in self._known:
            found = self._find(value)
            self._known[value] = found if found is not None and found.loose <= LOOSEST else None
        return self._known[value]

    def root(self, value: Value) -> Value:
        """What a value holds the same elements as."""
        op = self.producers.get(value)
        while op is not None and op.kind in ("reshape", "transpose", "expand_dims", "squeeze"):
            value = next(op.tensors())
            op = self.producers.get(value)
        return value

    def convex(self, product: Op) -> Value | None:
        """The right operand of a matmul whose left one is softmax over what is contracted: its mean, weighted."""
        left, right = list(product.tensors())[:2]
        flag = product.inputs.get("transpose_x")
        if product.kind != "matmul" or not isinstance(flag, Value) or flag.const:
            return None
        while (op := self.producers.get(left)) is not None and op.kind == "reshape":
            source = next(op.tensors())
            if source.shape[-1] != left.shape[-1]:
                break
            left = source
        return right if left.softmax else None

    def _find(self, value: Value) -> Known | None:
        if value.bound is not None:
            return Known(Bound.number(value.bound), max(1.0, value.bound / PEAK))
        if value.const is not None:
            return Known(Bound.number(float(np.abs(np.asarray(value.const, np.float64)).max(initial=0.0))))
        if value in self.ports:
            return Known(Bound.of(value.name))
        if value.around_mean is not None:
            known = self.of(value.around_mean)
            return known and known.plus(known)
        op = self.producers.get(value)
        if op is None or len(op.outputs) != 1:
            return None
        if op.kind in self.products:
            return self._of_product(op)
        if op.kind in _WITHIN_ONE:
            return Known(Bound.number(1.0))
        if op.kind in _KEEP:
            return self.of(next(op.tensors()))
        if op.kind == "reduce_sum":
            return self._of_sum(op)
        if op.kind == "concat":
            return self._of_parts(op)
        if op.kind in ("add", "sub", "mul"):
            return self._of_arithmetic(op)
        return None

    def _of_product(self, op: Op) -> Known:
        right = self.convex(op)
        mean = None if right is None else self.of(right)
        if mean is not None and 2.0 * mean.loose <= LOOSEST:  # softmax's rows add up to 1 but for their rounding
            return Known(mean.bound.times(Bound.number(1.0 + 2.0**-6)), 2.0 * mean.loose)
        return Known(Bound.of(op.output))

    def _of_sum(self, op: Op) -> Known | None:
        """Of a sum over the last axis of softmax times a value, that of the value."""
        axes, product = op.inputs["axes"], self.producers.get(next(op.tensors()))
        if product is None or product.kind != "mul" or not isinstance(axes, Value):
            return None
        x, y = product.tensors()
        if not (x.softmax or y.softmax) or tuple(axes.const) not in ((-1,), (product.output.type.rank - 1,)):
            return None
        return self.of(y if x.softmax else x)

    def _of_parts(self, op: Op) -> Known | None:
        parts = [self.of(v) for v in op.tensors()]
        found = parts[0]
        for part in parts[1:]:
            if found is None or part is None:
                return None
            found = found if found.bound == part.bound else found.plus(part)
        return found

    def _of_arithmetic(self, op: Op) -> Known | None:
        x, y = op.tensors()
        left, right = self.of(x), self.of(y)
        if left is None or right is None:
            return None
        if op.kind != "mul":
            return left.plus(right)
        small = min((x, y), key=lambda v: v.type.numel)
        if small.type.numel * MEETS <= op.output.type.numel:
            return left.times(right)
        if x.softmax or y.softmax:
            return left.times(right).times(Known(Bound.number(1.0), APART))
        return None
