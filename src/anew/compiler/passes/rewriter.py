"""Rebuild a function operation by operation, which is how every pass changes one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from anew.mil import Builder, Function, Op, Value


class Rewriter:
    """Copies a function into a new builder; a pass overrides what it replaces through ``values``."""

    def __init__(self, function: Function) -> None:
        self.builder = Builder()
        self.values: dict[Value, Value] = {v: self.builder.input(v.name, v.shape) for v in function.inputs}

    def __getitem__(self, value: Value) -> Value:
        """The new value that stands for an old one."""
        return self.values[value]

    def copy(self, op: Op) -> Value:
        """Copy one operation, its operands replaced."""
        if op.kind == "const":
            new = self.builder.constant(op.output.const, op.output.type)
        else:
            operands: dict[str, Any] = {
                name: tuple(self[v] for v in operand) if isinstance(operand, tuple) else self[operand]
                for name, operand in op.inputs.items()
            }
            new = self.builder.op(op.kind, **operands)
        self.values[op.output] = new
        return new

    def finish(self, outputs: Sequence[Value]) -> Function:
        """Close the new function; ``outputs`` are new values."""
        return self.builder.function(outputs)


def uses_of(function: Function) -> dict[Value, list[Op]]:
    """The operations that read each value."""
    uses: dict[Value, list[Op]] = defaultdict(list)
    for op in function.ops:
        for value in op.operands():
            uses[value].append(op)
    return uses
