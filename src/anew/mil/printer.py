"""Print a program as MIL text and a weight blob.

The text holds every constant as a named ``const`` operation with an explicit type. Floats are hexadecimal, so that the
text carries them exactly; larger constant tensors go to the blob. The older ``constexpr_*`` operations hold their
constants in brackets instead, as compilers want it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from anew.mil.blob import BLOB_CODES, BlobWriter
from anew.mil.lexer import is_name
from anew.mil.ops.registry import MilError, lookup
from anew.mil.program import Function, Op, Operand, Program, Value
from anew.mil.types import ELEMENT_BITS, TensorType, is_float, to_array

#: Where the text looks for the blob: the file ``weights.bin`` beside it.
WEIGHTS_PATH = "@model_path/weights.bin"

#: A constant tensor with more elements than this goes to the blob (the threshold of coremltools).
INLINE_ELEMENTS = 10

_RESERVED = frozenset({"program", "func", "tensor", "dict", "const", "true", "false", "inf", "nan", *ELEMENT_BITS})


def print_program(program: Program, weights_path: str = WEIGHTS_PATH) -> tuple[str, bytes]:
    """Return the MIL text of a program and the bytes of its weight blob.

    ``weights_path`` is the path the text gives for the blob. Equal constants share one record of the blob. Raises
    MilError for a name that is no MIL identifier and for a constant that its type cannot hold.
    """
    printer = ProgramPrinter(weights_path)
    for function in program.functions.values():
        printer.add(function)
    return printer.finish(program.version, program.build_info)


class ProgramPrinter:
    """Prints a program function by function, so that no more than one needs to be in memory with its constants.

    ``weights_path`` is the path the text gives for the blob, which the functions share.
    """

    def __init__(self, weights_path: str = WEIGHTS_PATH) -> None:
        self.writer = BlobWriter()
        self._path = _quote(weights_path)
        self._lines: list[str] = []

    def add(self, function: Function) -> None:
        """Print a function as it is now."""
        self._lines += self._function(function)

    def finish(self, version: str, build_info: Mapping[str, str]) -> tuple[str, bytes]:
        """The MIL text and the bytes of the weight blob."""
        info = ", ".join(f"{{{_quote(k)}, {_quote(v)}}}" for k, v in build_info.items())
        lines = [f"program({version})", f"[buildInfo = dict<string, string>({{{info}}})]", "{", *self._lines, "}"]
        return "\n".join(lines) + "\n", self.writer.to_bytes()

    def _function(self, function: Function) -> list[str]:
        inputs = ", ".join(f"{v.type} {_name(v)}" for v in function.inputs)
        head = f"    func {function.name}<{function.target}>({inputs}) {{"
        named = _named(function)
        lines = [f"        {self._op(op)}" for op in function.ops if op.kind != "const" or op.output in named]
        return [head, *lines, f"    }} -> ({_names(function.outputs)});"]

    def _op(self, op: Op) -> str:
        """One line; attributes in the order of their names, as Core ML's own compiler writes them."""
        results = ", ".join(f"{v.type} {_name(v)}" for v in op.outputs)
        attributes = [f'name = string("{op.outputs[0].name}")']
        inputs = ""
        if op.kind == "const":
            attributes.append(f"val = {self._constant(op.output.name, op.output.type, op.output.const)}")
        elif _bracketed(op):
            attributes += [f"{key} = {self._inline(op, key, x)}" for key, x in op.inputs.items()]
        else:
            inputs = ", ".join(f"{key} = {_operand(x)}" for key, x in op.inputs.items())
        attributes += [f"{key} = {self._constant(key, *item)}" for key, item in op.attributes.items()]
        return f"{results} = {op.kind}({inputs})[{', '.join(sorted(attributes))}];"

    def _inline(self, op: Op, parameter: str, operand: Operand) -> str:
        if isinstance(operand, tuple) or operand.const is None:
            raise MilError(f"{op.kind}: MIL text holds '{parameter}' in brackets, so it must be a constant")
        return self._constant(operand.name, operand.type, operand.const)

    def _constant(self, name: str, type: TensorType, payload: Any) -> str:
        if type.dtype == "string":
            return f"{type}({_quote(payload)})"
        array = _array(name, type, payload)
        if not type.shape:
            return f"{type}({_number(type.dtype, array.item())})"
        if _in_blob(type):
            offset = self.writer.add(array, type.dtype)
            return f"{type}(BLOBFILE(path = string({self._path}), offset = uint64({offset})))"
        return f"{type}([{', '.join(_number(type.dtype, x) for x in array.ravel().tolist())}])"


def _bracketed(op: Op) -> bool:
    return op.kind != "const" and lookup(op.kind).bracketed_by in op.inputs


def _named(function: Function) -> set[Value]:
    """The constants that need a line of their own: all but those that stand in brackets only."""
    inline = {v for op in function.ops if _bracketed(op) for v in op.operands()}
    elsewhere = {v for op in function.ops if not _bracketed(op) for v in op.operands()}
    return set(function.constants()) - (inline - elsewhere - set(function.outputs))


def _in_blob(type: TensorType) -> bool:
    """Say whether a constant tensor goes to the blob; integer vectors (shapes, axes) stay readable in the text."""
    return type.numel > INLINE_ELEMENTS and type.dtype in BLOB_CODES and not (type.dtype == "int32" and type.rank == 1)


def _array(name: str, type: TensorType, payload: Any) -> np.ndarray:
    try:
        array = to_array(payload, type.dtype)
    except (OverflowError, TypeError, ValueError):
        raise MilError(f"constant '{name}': {type} cannot hold {payload!r}") from None
    if array.shape != type.shape:
        raise MilError(f"constant '{name}' is {type}, but its value has shape {list(array.shape)}")
    return array


def _number(dtype: str, x: Any) -> str:
    if dtype == "bool":
        return "true" if x else "false"
    if not is_float(dtype):
        return str(x)
    mantissa, p, exponent = float(x).hex().partition("p")
    return (mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa) + p + exponent


def _operand(operand: Operand) -> str:
    return f"({_names(operand)})" if isinstance(operand, tuple) else _name(operand)


def _names(values: Iterable[Value]) -> str:
    return ", ".join(_name(v) for v in values)


def _name(value: Value) -> str:
    if not is_name(value.name) or value.name in _RESERVED:
        raise MilError(f"'{value.name}' cannot name a value in MIL text: use letters, digits and _, and no MIL keyword")
    return value.name


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
