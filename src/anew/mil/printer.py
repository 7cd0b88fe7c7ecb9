"""Print a program as MIL text and a weight blob.

The text holds every constant as a named ``const`` operation with an explicit type. Floats are hexadecimal, so that the
text carries them exactly; larger constant tensors go to the blob.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from anew.mil.blob import BLOB_CODES, BlobWriter
from anew.mil.lexer import is_name
from anew.mil.ops.registry import MilError
from anew.mil.program import Function, Op, Operand, Program, Value
from anew.mil.types import ELEMENT_BYTES, TensorType, numpy_dtype

#: Where the text looks for the blob: the file ``weights.bin`` beside it.
WEIGHTS_PATH = "@model_path/weights.bin"

#: A constant tensor with more elements than this goes to the blob (the threshold of coremltools).
INLINE_ELEMENTS = 10

_RESERVED = frozenset({"program", "func", "tensor", "dict", "const", "true", "false", "inf", "nan", *ELEMENT_BYTES})
_FLOATS = ("fp16", "fp32")


def print_program(program: Program, weights_path: str = WEIGHTS_PATH) -> tuple[str, bytes]:
    """Return the MIL text of a program and the bytes of its weight blob.

    ``weights_path`` is the path the text gives for the blob. Equal constants share one record of the blob. Raises
    MilError for a name that is no MIL identifier and for a constant that its type cannot hold.
    """
    blob = _Printer(weights_path)
    functions = [line for f in program.functions.values() for line in blob.function(f)]
    info = ", ".join(f"{{{_quote(k)}, {_quote(v)}}}" for k, v in program.build_info.items())
    lines = [f"program({program.version})", f"[buildInfo = dict<string, string>({{{info}}})]", "{", *functions, "}"]
    return "\n".join(lines) + "\n", blob.writer.to_bytes()


class _Printer:
    def __init__(self, weights_path: str) -> None:
        self.writer = BlobWriter()
        self._path = _quote(weights_path)

    def function(self, function: Function) -> list[str]:
        inputs = ", ".join(f"{v.type} {_name(v)}" for v in function.inputs)
        head = f"    func {function.name}<{function.target}>({inputs}) {{"
        return [head, *(f"        {self._op(op)}" for op in function.ops), f"    }} -> ({_names(function.outputs)});"]

    def _op(self, op: Op) -> str:
        value = op.output
        attributes = [f'name = string("{_name(value)}")']
        if op.kind == "const":
            attributes.append(f"val = {self._constant(value.name, value.type, value.const)}")
        attributes += [f"{key} = {self._constant(key, *item)}" for key, item in op.attributes.items()]
        inputs = ", ".join(f"{key} = {_operand(x)}" for key, x in op.inputs.items())
        return f"{value.type} {value.name} = {op.kind}({inputs})[{', '.join(attributes)}];"

    def _constant(self, name: str, type: TensorType, payload: Any) -> str:
        if type.dtype == "string":
            return f"{type}({_quote(payload)})"
        array = _array(name, type, payload)
        if not type.shape:
            return f"{type}({_number(type.dtype, array.item())})"
        if _in_blob(type):
            offset = self.writer.add(array)
            return f"{type}(BLOBFILE(path = string({self._path}), offset = uint64({offset})))"
        return f"{type}([{', '.join(_number(type.dtype, x) for x in array.ravel().tolist())}])"


def _in_blob(type: TensorType) -> bool:
    """Say whether a constant tensor goes to the blob; integer vectors (shapes, axes) stay readable in the text."""
    return type.numel > INLINE_ELEMENTS and type.dtype in BLOB_CODES and not (type.dtype == "int32" and type.rank == 1)


def _array(name: str, type: TensorType, payload: Any) -> np.ndarray:
    try:
        with np.errstate(over="raise"):
            array = np.asarray(payload, numpy_dtype(type.dtype))
    except (OverflowError, FloatingPointError, TypeError, ValueError):
        raise MilError(f"constant '{name}': {type} cannot hold {payload!r}") from None
    if array.shape != type.shape:
        raise MilError(f"constant '{name}' is {type}, but its value has shape {list(array.shape)}")
    return array


def _number(dtype: str, x: Any) -> str:
    if dtype == "bool":
        return "true" if x else "false"
    if dtype not in _FLOATS:
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
