"""Parse MIL text, with its weight blob, into a program.

Every name must be defined before its use and once, and every declared type must be the one that the operation's type
rule gives. Literals that stand inside an operation's arguments become named constants, as parameters left out do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from anew.mil.blob import BlobReader
from anew.mil.builder import infer_type
from anew.mil.lexer import Lexer, is_name
from anew.mil.ops.registry import MilError, OpDef, Param, lookup
from anew.mil.program import Function, Op, Operand, Program, Value
from anew.mil.types import ELEMENT_BYTES, TensorType, numpy_dtype

_FLOATS = ("fp16", "fp32")
_BOOLS = {"true": True, "false": False}

_T = TypeVar("_T")


def parse_program(text: str, weights: bytes | None = None) -> Program:
    """Return the program that MIL text spells; ``weights`` is the file that its ``BLOBFILE`` constants point into.

    Raises MilError with line and column when the text is not well formed: a syntax error, an operation that anew does
    not know, a name that is undefined or defined twice, operands or declared types that do not fit, a constant that
    the blob does not hold.
    """
    return _Parser(Lexer(text), weights).program()


class _Parser:
    def __init__(self, lexer: Lexer, weights: bytes | None) -> None:
        self._lex = lexer
        self._weights = weights
        self._reader: BlobReader | None = None
        self._path: str | None = None
        self._types: dict[tuple[str, ...], TensorType] = {}
        self._words = set(lexer.tokens)  # constants that the parser adds must not take a name of the text
        self._values: dict[str, Value] = {}
        self._ops: list[Op] = []

    # ---- program and functions

    def program(self) -> Program:
        lex = self._lex
        lex.expect("program", "(")
        if not lex.next[:1].isdigit():
            lex.unexpected("the version of the program")
        version = lex.take()
        lex.expect(")")
        info = self._build_info() if lex.next == "[" else {}
        lex.expect("{")
        functions: dict[str, Function] = {}
        while not lex.accept("}"):
            at = lex.at + 1
            function = self._function()
            if function.name in functions:
                lex.fail(f"function '{function.name}' is defined twice", at)
            functions[function.name] = function
        if lex.next:
            lex.unexpected("the end of the text")
        return Program(functions, version, info)

    def _build_info(self) -> dict[str, str]:
        lex = self._lex
        lex.expect("[", "buildInfo", "=", "dict", "<")
        self._type()
        lex.expect(",")
        self._type()
        lex.expect(">", "(", "{")
        info: dict[str, str] = {}
        while not lex.accept("}"):
            if info:
                lex.expect(",")
            lex.expect("{")
            key = lex.string()
            lex.expect(",")
            info[key] = lex.string()
            lex.expect("}")
        lex.expect(")", "]")
        return info

    def _function(self) -> Function:
        lex = self._lex
        lex.expect("func")
        name = lex.identifier("the name of the function")
        lex.expect("<")
        target = lex.identifier("the target of the function")
        lex.expect(">", "(")
        self._values, self._ops = {}, []
        inputs = self._list(")", self._input)
        lex.expect("{")
        while not lex.accept("}"):
            self._op()
        lex.expect("->", "(")
        outputs = self._list(")", self._reference)
        lex.expect(";")
        return Function(name, inputs, self._ops, outputs, target)

    def _list(self, end: str, item: Callable[[], _T]) -> list[_T]:
        items: list[_T] = []
        while not self._lex.accept(end):
            if items:
                self._lex.expect(",")
            items.append(item())
        return items

    def _input(self) -> Value:
        value = Value("", self._type())
        at = self._lex.at
        value.name = self._lex.identifier("the name of the input")
        self._define(value, at)
        return value

    def _define(self, value: Value, at: int) -> None:
        if value.name in self._values:
            self._lex.fail(f"'{value.name}' is defined twice", at)
        self._values[value.name] = value

    def _reference(self) -> Value:
        at = self._lex.at
        name = self._lex.identifier("the name of a value")
        if name not in self._values:
            self._lex.fail(f"'{name}' is not defined", at)
        return self._values[name]

    # ---- operations

    def _op(self) -> None:
        lex = self._lex
        declared = self._type()
        name_at = lex.at
        name = lex.identifier("the name of the value")
        lex.expect("=")
        at = lex.at
        kind = lex.identifier("an operation")
        definition = None if kind == "const" else self._located(at, lambda: lookup(kind))
        lex.expect("(")
        inputs = self._inputs(definition, name) if definition else self._no_inputs()
        attributes = self._attributes()
        lex.expect(";")
        value = Value(name, declared)
        if definition is None:
            value.const = self._const(declared, attributes, at)
        else:
            inferred = self._located(at, lambda: infer_type(definition, inputs))
            if inferred != declared:
                lex.fail(f"{kind}: '{name}' is declared {declared}, but the operation gives {inferred}", at)
        self._define(value, name_at)
        self._ops.append(Op(kind, inputs, [value], attributes))

    def _no_inputs(self) -> dict[str, Operand]:
        self._lex.expect(")")
        return {}

    def _const(self, declared: TensorType, attributes: dict[str, Any], at: int) -> Any:
        if "val" not in attributes:
            self._lex.fail("const: the attribute 'val' is missing", at)
        type, payload = attributes.pop("val")
        if type != declared:
            self._lex.fail(f"const: the value is declared {declared}, but val is {type}", at)
        return payload

    def _attributes(self) -> dict[str, Any]:
        """Parse ``[name = string("n"), key = type(payload), ...]``; the name says nothing that the value's does not."""
        lex = self._lex
        lex.expect("[")
        attributes: dict[str, Any] = {}
        for key, item in self._list("]", self._attribute):
            attributes[key] = item
        attributes.pop("name", None)
        return attributes

    def _attribute(self) -> tuple[str, tuple[TensorType, Any]]:
        key = self._lex.identifier("the name of an attribute")
        self._lex.expect("=")
        return key, self._typed_literal()

    def _inputs(self, definition: OpDef, result: str) -> dict[str, Operand]:
        lex = self._lex
        params = {p.name: p for p in definition.params}
        given: dict[str, Operand] = {}
        while not lex.accept(")"):
            if given:
                lex.expect(",")
            at = lex.at
            name = lex.identifier("the name of a parameter")
            if name not in params:
                lex.fail(f"{definition.name}: unknown parameter '{name}'", at)
            if name in given:
                lex.fail(f"{definition.name}: parameter '{name}' is given twice", at)
            lex.expect("=")
            given[name] = self._operand(definition, params[name], result)
        for param in definition.params:
            if not param.required and param.name not in given:
                given[param.name] = self._default(param, result)
        return {name: given[name] for name in params if name in given}

    def _operand(self, definition: OpDef, param: Param, result: str) -> Operand:
        lex = self._lex
        at = lex.at
        if lex.accept("("):
            if param.kind != "tensors":
                lex.fail(f"{definition.name}: '{param.name}' takes one value", at)
            return tuple(self._list(")", self._reference))
        operand = self._value(param, result)
        if param.kind == "const" and not _fits(param, operand):
            lex.fail(f"{definition.name}: '{param.name}' must be a constant {param.type}, not {operand!r}", at)
        return operand

    def _value(self, param: Param, result: str) -> Value:
        """Parse a name or a literal; a literal without a type takes the parameter's."""
        lex = self._lex
        hint = f"{result}_{param.name}"
        token, after = lex.next, lex.tokens[lex.at + 1 : lex.at + 2]
        if (token == "tensor" and after == ["<"]) or (token in ELEMENT_BYTES and after == ["("]):
            return self._add_constant(hint, *self._typed_literal())
        if is_name(token) and token not in _BOOLS:
            return self._reference()
        if not param.type:
            lex.unexpected("a value or a literal with its type, such as fp16(0.5)")
        return self._add_constant(hint, *self._untyped_literal(param))

    def _untyped_literal(self, param: Param) -> tuple[TensorType, Any]:
        if param.type == "int32[]":
            at = self._lex.at
            numbers = self._numbers("int32")
            type = TensorType("int32", (len(numbers),))
            return type, self._payload(type, numbers, at)
        return TensorType(param.type), self._scalar(param.type)

    def _default(self, param: Param, result: str) -> Value:
        default = float(np.float16(param.default)) if param.type == "fp16" else param.default
        return self._add_constant(f"{result}_{param.name}", TensorType(param.type), default)

    def _add_constant(self, hint: str, type: TensorType, payload: Any) -> Value:
        name, n = hint, 0
        while name in self._words:
            n += 1
            name = f"{hint}_{n}"
        self._words.add(name)
        value = Value(name, type, payload)
        self._ops.append(Op("const", {}, [value]))
        return value

    # ---- types and literals

    def _type(self) -> TensorType:
        lex = self._lex
        if lex.next != "tensor":
            if lex.next not in ELEMENT_BYTES:
                lex.unexpected("a type")
            return TensorType(lex.take())
        end = lex.at + 1
        while lex.tokens[end] not in (">", ""):
            end += 1
        spelled = tuple(lex.tokens[lex.at : end])
        if spelled not in self._types:
            self._types[spelled] = self._tensor_type()
        else:
            lex.at = end + 1
        return self._types[spelled]

    def _tensor_type(self) -> TensorType:
        lex = self._lex
        lex.expect("tensor", "<")
        if lex.next not in ELEMENT_BYTES:
            lex.unexpected("an element type")
        dtype = lex.take()
        lex.expect(",", "[")
        shape = self._list("]", self._size)
        lex.expect(">")
        return TensorType(dtype, tuple(shape))

    def _size(self) -> int:
        if not self._lex.next.isdecimal():
            self._lex.unexpected("the size of an axis")
        return int(self._lex.take())

    def _typed_literal(self) -> tuple[TensorType, Any]:
        """Parse ``type(payload)`` where the payload is a scalar, a list of numbers or a ``BLOBFILE``."""
        lex = self._lex
        type = self._type()
        lex.expect("(")
        at = lex.at
        if lex.next == "BLOBFILE":
            payload = self._payload(type, self._blob(type), at)
        elif type.shape:
            payload = self._payload(type, self._numbers(type.dtype), at)
        else:
            payload = self._scalar(type.dtype)
        lex.expect(")")
        return type, payload

    def _scalar(self, dtype: str) -> Any:
        if dtype == "string":
            return self._lex.string()
        at = self._lex.at
        return self._array(TensorType(dtype), self._number(dtype), at).item()

    def _number(self, dtype: str) -> Any:
        token = self._lex.next
        try:
            number = _convert(dtype, token)
        except (KeyError, ValueError, OverflowError):
            self._lex.unexpected(f"a value of type {dtype}")
        self._lex.at += 1
        return number

    def _numbers(self, dtype: str) -> list[Any]:
        """Parse a list of numbers, nested or not, and return them in order."""
        lex = self._lex
        lex.expect("[")

        def item() -> list[Any]:
            return self._numbers(dtype) if lex.next == "[" else [self._number(dtype)]

        return [x for part in self._list("]", item) for x in part]

    def _blob(self, type: TensorType) -> np.ndarray:
        lex = self._lex
        at = lex.at
        lex.expect("BLOBFILE", "(", "path", "=")
        path = self._field("string")
        lex.expect(",", "offset", "=")
        offset = self._field("uint64")
        lex.expect(")")
        if self._path not in (None, path):
            lex.fail(f"weights lie in two files, '{self._path}' and '{path}'; anew reads one", at)
        self._path = path
        return self._located(at, lambda: self._blob_reader().read(offset, type.dtype, type.shape))

    def _field(self, dtype: str) -> Any:
        at = self._lex.at
        type, payload = self._typed_literal()
        if type != TensorType(dtype):
            self._lex.fail(f"expected a {dtype}, but found {type}", at)
        return payload

    def _blob_reader(self) -> BlobReader:
        if self._weights is None:
            raise MilError(f"the text takes constants from '{self._path}', but no weights were given")
        if self._reader is None:
            self._reader = BlobReader(self._weights)
        return self._reader

    def _payload(self, type: TensorType, numbers: Any, at: int) -> Any:
        """Return a constant tensor's payload: a tuple for an int32 vector (shapes, axes), else an array."""
        array = self._array(type, numbers, at)
        return tuple(array.tolist()) if type.dtype == "int32" and type.rank == 1 else array

    def _array(self, type: TensorType, numbers: Any, at: int) -> np.ndarray:
        try:
            with np.errstate(over="raise"):
                array = np.asarray(numbers, numpy_dtype(type.dtype))
        except (OverflowError, FloatingPointError):
            self._lex.fail(f"{type.dtype} cannot hold this value", at)
        if array.size != type.numel:
            self._lex.fail(f"{type} has {type.numel} elements, but {array.size} are given", at)
        return array.reshape(type.shape)

    def _located(self, at: int, action: Callable[[], _T]) -> _T:
        """Run ``action`` and give the MilError it raises the position of token ``at``."""
        try:
            return action()
        except MilError as error:
            self._lex.fail(str(error), at)


def _convert(dtype: str, token: str) -> Any:
    """Return the number a token spells; raises KeyError, ValueError or OverflowError when it spells none of dtype."""
    if dtype == "bool":
        return _BOOLS[token]
    if dtype not in _FLOATS:
        return int(token)
    return float.fromhex(token) if "x" in token.lower() else float(token)


def _fits(param: Param, operand: Value) -> bool:
    """Say whether a value is a constant of the type a parameter takes; an fp16 one may be fp32 beside fp32 tensors."""
    element, is_list = param.type.removesuffix("[]"), param.type.endswith("[]")
    elements = _FLOATS if element == "fp16" else (element,)
    return operand.const is not None and operand.type.dtype in elements and operand.type.rank == int(is_list)
