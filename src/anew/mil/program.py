"""Programs as data: values, operations, functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from anew.mil.ops.registry import MilError, lookup
from anew.mil.types import TensorType

#: What the engine's compiler is told about who wrote the program (versions that macOS 26 accepts; ANEForge 0.4.0).
BUILD_INFO = {"coremlc-component-MIL": "3520.4.1", "coremlc-version": "3520.5.1"}


@dataclass(eq=False)
class Value:
    """One SSA value. ``const`` holds a constant's payload: a Python scalar, string, tuple or numpy array.

    ``constexpr`` marks the result of a ``constexpr_*`` operation: a constant whose payload is computed when a device
    compiles the program. ``bound`` is a magnitude that the value cannot exceed, where whoever made it knows one,
    ``softmax`` says that it is one over its last axis, and ``around_mean`` is the value that it is, less means of that
    value's own elements; text does not show these.
    """

    name: str
    type: TensorType
    const: Any = None
    constexpr: bool = False
    bound: float | None = None
    softmax: bool = False
    around_mean: Value | None = None

    def __repr__(self) -> str:
        return f"{self.type} {self.name}"

    @property
    def shape(self) -> tuple[int, ...]:
        """The static shape."""
        return self.type.shape

    @property
    def constant(self) -> bool:
        """Whether the value is known when compiling."""
        return self.const is not None or self.constexpr


Operand = Value | tuple[Value, ...]


@dataclass(eq=False)
class Op:
    """One operation: its kind, operands by parameter name, and the values it defines.

    ``attributes`` are those in the brackets of MIL text that anew gives no meaning. ``name``, a constant's ``val`` and
    what brackets give the parameters of a ``constexpr_*`` operation are not among them.
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

    @property
    def constant(self) -> bool:
        """Whether the operation is done when compiling: ``const`` and ``constexpr_*``."""
        return all(value.constant for value in self.outputs)


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
        """The function ``main``; raises MilError when there is none."""
        return self.function("main")

    def function(self, name: str | None = None) -> Function:
        """Return the function of a name; without one ``main``, or the only function whatever its name.

        Raises MilError when there is none, or when several could be meant.
        """
        if name is None:
            name = next(iter(self.functions)) if len(self.functions) == 1 else "main"
        if name not in self.functions:
            known = ", ".join(self.functions) or "none"
            raise MilError(f"the program has no function '{name}'; it has {known}")
        return self.functions[name]
