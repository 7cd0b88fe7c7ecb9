"""A power of two that multiplies a sum of products multiplies a small factor of each instead.

So attention's scale multiplies the cosines and sines of a rotary embedding, which all heads and sequences share, and
not the queries.
"""

from __future__ import annotations

import math
from typing import Any

from anew.compiler.passes.rewriter import Rewriter, number_of, uses_of
from anew.mil import Function, Op, Value

#: How many times the elements of a factor a product must have for the factor to be the one that is multiplied.
SMALLER = 8


def numbers_on_factors(function: Function) -> Function:
    """Return the function with powers of two moved onto factors that are small, where all of a sum's products have one.

    Nothing but subnormal numbers is rounded otherwise.
    """
    return _Numbers(function).run()


class _Numbers:
    def __init__(self, function: Function) -> None:
        self.function = function
        self.producers = {v: op for op in function.ops for v in op.outputs}
        self.uses = uses_of(function)
        self.numbers: dict[Op, tuple[str, float]] = {}  # the small operand of a product by its name, and its number

    def run(self) -> Function:
        moved = {op: value for op in self.function.ops if (value := self._moved(op)) is not None}
        new = Rewriter(self.function)
        for op in self.function.ops:
            if op in moved:
                new.values[op.output] = new[moved[op]]
            elif op in self.numbers:
                name, number = self.numbers[op]
                operands: dict[str, Any] = {n: new[v] for n, v in op.inputs.items() if isinstance(v, Value)}
                operands[name] = new.builder.op("mul", x=operands[name], y=number)
                new.values[op.output] = new.builder.op("mul", **operands)
            else:
                new.copy(op)
        return new.finish([new[v] for v in self.function.outputs])

    def _moved(self, op: Op) -> Value | None:
        """The sum that an operation multiplies by a power of two, if its products' factors take that: it is noted."""
        found = _power_of_two(op)
        products = None if found is None else self._products(found[0])
        if found is None or products is None:
            return None
        value, number = found
        self.numbers |= {product: (name, number) for product, name in products.items()}
        return value

    def _products(self, value: Value) -> dict[Op, str] | None:
        """The products that a value is a sum of, each with its small operand; None if there is more to it."""
        op = self.producers.get(value)
        if op is None or len(self.uses[value]) != 1 or value in self.function.outputs or op in self.numbers:
            return None
        if op.kind in ("reshape", "transpose"):
            return self._products(next(op.tensors()))
        if op.kind in ("add", "sub"):
            left, right = (self._products(v) for v in op.tensors())
            return None if left is None or right is None else left | right
        small = [n for n, v in op.inputs.items() if isinstance(v, Value) and self._is_small(v, op)]
        return {op: small[0]} if op.kind == "mul" and small else None

    def _is_small(self, value: Value, op: Op) -> bool:
        return not value.constant and value.type.numel * SMALLER <= op.output.type.numel


def _power_of_two(op: Op) -> tuple[Value, float] | None:
    found = number_of(op)
    return found if found is not None and abs(math.frexp(found[1])[0]) == 0.5 else None
