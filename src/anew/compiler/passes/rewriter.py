"""Rebuild a function operation by operation, which is how every pass changes one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from anew.mil import Builder, Function, Op, Value


class Rewriter:
    """Copies a function into a new builder; a pass overrides what it replaces through ``values``.

    ``keep_names`` lets every copied value keep its name, as long as what a pass adds is named otherwise.
    """

    def __init__(self, function: Function, *, keep_names: bool = False) -> None:
        self.builder = Builder()
        self.keep_names = keep_names
        self.values: dict[Value, Value] = {v: self.builder.input(v.name, v.shape) for v in function.inputs}
        for old, port in self.values.items():
            port.bound, port.softmax = old.bound, old.softmax

    def __getitem__(self, value: Value) -> Value:
        """The new value that stands for an old one."""
        return self.values[value]

    def copy(self, op: Op) -> Value:
        """Copy one operation, its operands replaced."""
        if op.kind == "const":
            new = self.builder.constant(op.output.const, op.output.type, op.output.name if self.keep_names else "")
        else:
            operands: dict[str, Any] = {
                name: tuple(self[v] for v in operand) if isinstance(operand, tuple) else self[operand]
                for name, operand in op.inputs.items()
            }
            new = self.builder.op(op.kind, op.output.name if self.keep_names else None, **operands)
            new.bound, new.softmax = op.output.bound, op.output.softmax
            new.around_mean = op.output.around_mean and self[op.output.around_mean]
        self.values[op.output] = new
        return new

    def finish(self, outputs: Sequence[Value]) -> Function:
        """Close the new function; ``outputs`` are new values."""
        return self.builder.function(outputs)


def number_of(op: Op) -> tuple[Value, float] | None:
    """What an operation multiplies, and the number that it multiplies it by, if that is all it does."""
    if op.kind != "mul" or all(v.constant for v in op.tensors()):
        return None
    numbers = [v.const for v in op.tensors() if v.constant and v.type.numel == 1]
    if len(numbers) != 1:
        return None
    (value,) = (v for v in op.tensors() if not v.constant)
    return value, float(np.asarray(numbers[0]).item())


def uses_of(function: Function) -> dict[Value, list[Op]]:
    """The operations that read each value."""
    uses: dict[Value, list[Op]] = defaultdict(list)
    for op in function.ops:
        for value in op.operands():
            uses[value].append(op)
    return uses
