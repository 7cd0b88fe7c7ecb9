"""Take a mean over features that a weight scales as a product with that weight, which the array adds up exactly.

A norm's backward pass needs the mean of ``gradient * weight * normed`` over each row, and its weight's gradient is a
product, with ones, of ``gradient * normed``. As an operand that is at hand, and one more product of it, with a matrix
of one column, takes the place of a multiplication and a sum over all elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from anew.compiler.passes.rewriter import Rewriter
from anew.mil import Function, Op, Value


def means_as_products(function: Function) -> Function:
    """Return the function with means over the last axis as products where no new operand is as large as what they read.

    What then nobody reads is left in.
    """
    return _Means(function).run()


class _Means:
    def __init__(self, function: Function) -> None:
        self.function = function
        self.new = Rewriter(function)
        self.producers = {v: op for op in function.ops for v in op.outputs}
        self.operands = {(self._root(v), v.shape) for op in function.ops if op.kind == "matmul" for v in op.tensors()}
        self.multiplied: dict[frozenset[Value], Value] = {}  # what was multiplied so far, by its two factors

    def run(self) -> Function:
        for op in self.function.ops:
            found = next(self._factors(op), None)
            if found is None:
                self.new.copy(op)
            else:
                self.new.values[op.output] = self._product(op, *found)
            if op.kind == "mul":
                self.multiplied[frozenset(op.tensors())] = op.output
        return self.new.finish([self.new[v] for v in self.function.outputs])

    def _factors(self, op: Op) -> Iterator[tuple[Value, Value]]:
        """The operand and the weight whose product a mean over the last axis is of."""
        axes = op.inputs.get("axes")
        if op.kind != "reduce_mean" or not isinstance(axes, Value):
            return
        x = next(op.tensors())
        if list(axes.const) not in ([-1], [x.type.rank - 1]):
            return
        flat = (x.type.numel // x.shape[-1], x.shape[-1])
        for a, b in self._split(x):
            pairs = [(a, b)] + [(self.multiplied.get(frozenset((a, c))), w) for c, w in self._split(b)]
            for rest, weight in pairs:
                alone = weight.shape[-1:] == flat[1:] and weight.type.numel == flat[1] and not weight.constant
                if alone and rest is not None and rest.shape == x.shape and (self._root(rest), flat) in self.operands:
                    yield rest, weight

    def _split(self, value: Value) -> list[tuple[Value, Value]]:
        """The factors of a multiplication in either order."""
        op = self.producers.get(value)
        if op is None or op.kind != "mul":
            return []
        x, y = op.tensors()
        return [(x, y), (y, x)]

    def _root(self, value: Value) -> Value:
        while (op := self.producers.get(value)) is not None and op.kind == "reshape":
            value = next(op.tensors())
        return value

    def _product(self, op: Op, rest: Value, weight: Value) -> Value:
        """The mean, divided by the number of features in two steps, so that neither leaves fp16."""
        build, count = self.new.builder.op, rest.shape[-1]
        share = 2.0 ** -(math.frexp(count)[1] // 2)
        rows = build("reshape", x=self.new[self._root(rest)], shape=[rest.type.numel // count, count])
        column = build("mul", x=build("reshape", x=self.new[weight], shape=[count, 1]), y=share)
        total = build("matmul", x=rows, y=column, transpose_x=False, transpose_y=False)
        mean = build("mul", x=total, y=1.0 / (count * share))
        return build("reshape", x=mean, shape=op.output.shape)
