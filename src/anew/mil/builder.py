"""Build a function one operation at a time: types are inferred, parameters become named constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from anew.mil.ops.registry import MilError, OpDef, Param, lookup
from anew.mil.program import Function, Op, Operand, Program, Value
from anew.mil.types import TensorType, numpy_dtype


def infer_types(definition: OpDef, inputs: Mapping[str, Operand]) -> tuple[TensorType, ...]:
    """Return the types of an operation's results by its type rule; raises MilError when the operands do not fit."""
    inferred = definition.infer(**rule_operands(definition, inputs))
    return inferred if isinstance(inferred, tuple) else (inferred,)


def rule_operands(definition: OpDef, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return operands as type rules take them: types of tensors, Python values of compile-time parameters."""
    return {
        param.name: _rule_operand(definition, param, inputs[param.name])
        if inputs.get(param.name) is not None
        else _missing(definition, param)
        for param in definition.params
    }


def _missing(definition: OpDef, param: Param) -> Any:
    if param.required:
        raise MilError(f"{definition.name}: parameter '{param.name}' is missing")
    return param.default


def _rule_operand(definition: OpDef, param: Param, operand: Any) -> Any:
    if param.kind == "tensors":
        if not isinstance(operand, tuple) or not operand:
            raise MilError(f"{definition.name}: '{param.name}' takes a tuple of values")
        return tuple(v.type for v in operand)
    if param.is_tensor:
        if not isinstance(operand, Value):
            raise MilError(f"{definition.name}: '{param.name}' takes one value")
        if param.kind == "constant" and not operand.constant:
            raise MilError(f"{definition.name}: '{param.name}' must be a constant, not {operand!r}")
        return operand.type
    if isinstance(operand, Value):
        if operand.const is None:
            raise MilError(f"{definition.name}: parameter '{param.name}' must be a constant")
        return operand.const
    return operand


class Builder:
    """Collects the operations of one function.

    ``builder.op("add", x=a, y=b)`` returns the new value. Compile-time parameters are given as Python values and become
    named constants (the engine's compiler rejects inline literals); equal constants are shared. Tensor operands may be
    floats, which become fp16 scalars.
    """

    def __init__(self) -> None:
        self.inputs: list[Value] = []
        self.ops: list[Op] = []
        self._producers: dict[Value, Op] = {}
        self._names: set[str] = set()
        self._constants: dict[tuple[Any, ...], Value] = {}

    def input(self, name: str, shape: Sequence[int], dtype: str = "fp16") -> Value:
        """Add a parameter of the function: an input port of that name."""
        if name in self._names:
            raise MilError(f"the name '{name}' is taken")
        self._names.add(name)
        value = Value(name, TensorType(dtype, tuple(shape)))
        self.inputs.append(value)
        return value

    def fresh(self, hint: str) -> str:
        """Return an unused name that starts with ``hint``."""
        name, n = hint, 0
        while name in self._names:
            n += 1
            name = f"{hint}_{n}"
        self._names.add(name)
        return name

    def constant(self, payload: Any, type: TensorType, hint: str = "") -> Value:
        """Return a named constant; scalars, strings and integer tuples that are equal share one."""
        key = (
            str(type),
            payload.tobytes() if isinstance(payload, np.ndarray) else repr(payload),
        )  # repr: 0.0 is not -0.0
        if key not in self._constants:
            value = Value(self.fresh(hint or _constant_hint(payload, type)), type, payload)
            self._append(Op("const", {}, [value]))
            self._constants[key] = value
        return self._constants[key]

    def slot(self, type: TensorType, hint: str) -> Value:
        """Return a named constant whose payload is still to come, in ``value.const``; until then it is zeros."""
        zeros = np.broadcast_to(np.zeros((), numpy_dtype(type.dtype)), type.shape)
        value = Value(self.fresh(hint), type, zeros)
        self._append(Op("const", {}, [value]))
        return value

    def scalar(self, x: float) -> Value:
        """Return an fp16 scalar constant, rounded to the nearest fp16."""
        return self.constant(float(np.float16(x)), TensorType("fp16"))

    def array(self, x: np.ndarray, hint: str = "", dtype: str = "fp16") -> Value:
        """Return a constant tensor; ``x`` is converted to ``dtype``."""
        payload = np.ascontiguousarray(x, numpy_dtype(dtype))
        return self.constant(payload, TensorType(dtype, payload.shape), hint)

    def op(self, kind: str, hint: str | None = None, **operands: Any) -> Value:
        """Append an operation and return the value it defines; raises MilError when the operands do not fit."""
        (value,) = self.results(kind, hint, **operands)
        return value

    def results(self, kind: str, hint: str | None = None, **operands: Any) -> tuple[Value, ...]:
        """Append an operation and return the values it defines, one or, as of ``split``, several."""
        definition = lookup(kind)
        unknown = set(operands) - {p.name for p in definition.params}
        if unknown:
            raise MilError(f"{kind}: unknown parameter '{sorted(unknown)[0]}'")
        inputs: dict[str, Operand] = {}
        for param in definition.params:
            given = operands[param.name] if param.name in operands else _missing(definition, param)
            if given is not None:
                inputs[param.name] = self._operand(param, given)
        types = infer_types(definition, inputs)
        constexpr = definition.family == "constexpr"
        values = tuple(Value(self.fresh(hint or kind), type, constexpr=constexpr) for type in types)
        self._append(Op(kind, inputs, list(values)))
        return values

    def producer(self, value: Value) -> Op | None:
        """Return the operation that defines a value; None for an input."""
        return self._producers.get(value)

    def _append(self, op: Op) -> None:
        self.ops.append(op)
        self._producers.update(dict.fromkeys(op.outputs, op))

    def _operand(self, param: Param, given: Any) -> Operand:
        if isinstance(given, Value):
            return given
        if param.kind == "tensors":
            return tuple(given)
        if param.is_tensor or param.type == "fp16":
            return self.scalar(float(given))
        return self.constant(*const_payload(param.type, given))

    def function(self, outputs: Sequence[Value], name: str = "main") -> Function:
        """Close the function with its results."""
        return Function(name, self.inputs, self.ops, list(outputs))

    def program(self, outputs: Sequence[Value]) -> Program:
        """Close the function and wrap it into a program of that one function."""
        function = self.function(outputs)
        return Program({function.name: function})


def const_payload(type: str, given: Any) -> tuple[Any, TensorType]:
    """Return a compile-time parameter's payload and type: a tuple for ``int32[]``, an array for any other list."""
    element = type.removesuffix("[]")
    if element == type:
        convert: Callable[[Any], Any] = {"int32": int, "bool": bool, "string": str}[element]
        return convert(given), TensorType(element)
    payload: Any = tuple(int(n) for n in given) if element == "int32" else np.array(given, numpy_dtype(element))
    return payload, TensorType(element, (len(payload),))


def _constant_hint(payload: Any, type: TensorType) -> str:
    """A name that says what a shared constant is: ``yes``, ``i_0_2_1``, ``f``, ``w``."""
    if type == TensorType("bool"):
        return "yes" if payload else "no"
    if isinstance(payload, tuple):
        return "_".join(["i", *(str(n).replace("-", "m") for n in payload)])
    return {"int32": "i", "string": "text"}.get(type.dtype, "f" if not type.shape else "w")
