"""Programs as data: values, operations, functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from anew.mil.ops.registry import lookup
from anew.mil.types import TensorType

#: What the engine's compiler is told about who wrote the program (versions that macOS 26 accepts; ANEForge 0.4.0).
BUILD_INFO = {"coremlc-component-MIL": "3520.4.1", "coremlc-version": "3520.5.1"}


@dataclass(eq=False)
class Value:
    """One SSA value. ``const`` holds a constant's payload: a Python scalar, string, tuple or numpy array."""

    name: str
    type: TensorType
    const: Any = None

    def __repr__(self) -> str:
        return f"{self.type} {self.name}"

    @property
    def shape(self) -> tuple[int, ...]:
        """The static shape."""
        return self.type.shape


Operand = Value | tuple[Value, ...]


@dataclass(eq=False)
class Op:
    """One operation: its kind, operands by parameter name, and the values it defines.

    ``attributes`` are the bracketed ones of MIL text except ``name`` and ``val``
    (``constexpr_*`` operations carry their payload there).
    """

    kind: str
    inputs: dict[str, Operand]
    outputs: list[Value]
    attributes: dict[str, Any] = field(default_factory=dict)

    def operands(self) -> Iterator[Value]:
        """Every operand value, tuples flattened, in parameter order."""
        for operand in self.inputs.values():
            if isinstance(operand, tuple):
                yield from operand
            else:
                yield operand

    def tensors(self) -> Iterator[Value]:
        """The tensor operands only: compile-time parameters left out."""
        for param in lookup(self.kind).params:
            if param.kind == "const" or param.name not in self.inputs:
                continue
            operand = self.inputs[param.name]
            yield from operand if isinstance(operand, tuple) else (operand,)

    @property
    def output(self) -> Value:
        """The single value an operation defines."""
        (value,) = self.outputs
        return value


@dataclass(eq=False)
class Function:
    """A function: parameters (input ports), operations in order, results (output ports)."""

    name: str
    inputs: list[Value]
    ops: list[Op]
    outputs: list[Value]
    target: str = "ios18"

    def constants(self) -> Iterator[Value]:
        """Values defined by ``const`` operations, in order."""
        return (op.output for op in self.ops if op.kind == "const")


@dataclass(eq=False)
class Program:
    """A MIL program: functions by name and the text header's version and build information."""

    functions: dict[str, Function]
    version: str = "1.3"
    build_info: dict[str, str] = field(default_factory=lambda: dict(BUILD_INFO))

    @property
    def main(self) -> Function:
        """The function ``main``."""
        return self.functions["main"]
