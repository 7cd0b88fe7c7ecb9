"""Parse the types and the literals of MIL text: numbers, strings, lists, and constants that lie in a weight blob."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from anew.mil.blob import BlobReader, Weights
from anew.mil.lexer import Lexer
from anew.mil.ops.registry import MilError
from anew.mil.types import ELEMENT_BITS, TensorType, is_float, to_array

BOOLS = {"true": True, "false": False}

_LARGEST_AXIS = 2**31 - 1
_DEEPEST_LIST = 16

_T = TypeVar("_T")


class Literals:
    """Reads types and literals at a lexer's cursor."""

    def __init__(self, lexer: Lexer, weights: Weights | None) -> None:
        self._lex = lexer
        self._weights = weights
        self._path: str | None = None
        self._readers: dict[str, BlobReader] = {}
        self._types: dict[tuple[str, ...], TensorType] = {}

    def items(self, end: str, item: Callable[[], _T]) -> list[_T]:
        """Parse items with commas between them, up to and including ``end``."""
        items: list[_T] = []
        while not self._lex.accept(end):
            if items:
                self._lex.expect(",")
            items.append(item())
        return items

    def located(self, at: int, action: Callable[[], _T]) -> _T:
        """Run ``action`` and give the MilError it raises the position of token ``at``."""
        try:
            return action()
        except MilError as error:
            self._lex.fail(str(error), at)

    # ---- types

    def type(self) -> TensorType:
        """Parse ``fp16`` or ``tensor<fp16, [2, 3]>``."""
        lex = self._lex
        if lex.next != "tensor":
            if lex.next not in ELEMENT_BITS:
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
        if lex.next not in ELEMENT_BITS:
            lex.unexpected("an element type")
        dtype = lex.take()
        lex.expect(",", "[")
        shape = self.items("]", self._size)
        lex.expect(">")
        return TensorType(dtype, tuple(shape))

    def _size(self) -> int:
        if not self._lex.next.isdecimal():
            self._lex.unexpected("the size of an axis")
        if len(self._lex.next) > 10 or int(self._lex.next) > _LARGEST_AXIS:
            self._lex.fail(f"an axis of {self._lex.next[:20]} elements is too large")
        return int(self._lex.take())

    # ---- literals

    def typed(self) -> tuple[TensorType, Any]:
        """Parse ``type(payload)`` where the payload is a scalar, a list of numbers or a ``BLOBFILE``."""
        lex = self._lex
        at = lex.at
        type = self.type()
        if type.dtype == "string" and type.shape:
            lex.fail(f"{type}: lists of strings are not known to anew", at)
        lex.expect("(")
        at = lex.at
        if lex.next == "BLOBFILE":
            payload = self._payload(type, self._blob(type), at)
        elif type.shape:
            payload = self._payload(type, self._numbers(type.dtype), at)
        else:
            payload = self.scalar(type.dtype)
        lex.expect(")")
        return type, payload

    def untyped(self, element: str) -> tuple[TensorType, Any]:
        """Parse a literal that a parameter gives its type: ``element`` or, with ``[]`` after it, a list of them."""
        if not element.endswith("[]"):
            return TensorType(element), self.scalar(element)
        element = element.removesuffix("[]")
        at = self._lex.at
        numbers = self._numbers(element)
        type = TensorType(element, (len(numbers),))
        return type, self._payload(type, numbers, at)

    def scalar(self, dtype: str) -> Any:
        """Parse a string, a number or ``true`` and ``false``."""
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

    def _numbers(self, dtype: str, depth: int = 1) -> list[Any]:
        """Parse a list of numbers, nested or not, and return them in order."""
        lex = self._lex
        if depth > _DEEPEST_LIST:
            lex.fail(f"lists nest deeper than {_DEEPEST_LIST}")
        lex.expect("[")

        def item() -> list[Any]:
            return self._numbers(dtype, depth + 1) if lex.next == "[" else [self._number(dtype)]

        return [x for part in self.items("]", item) for x in part]

    def _payload(self, type: TensorType, numbers: Any, at: int) -> Any:
        """Return a constant tensor's payload: a tuple for an int32 vector (shapes, axes), else an array."""
        array = self._array(type, numbers, at)
        return tuple(array.tolist()) if type.dtype == "int32" and type.rank == 1 else array

    def _array(self, type: TensorType, numbers: Any, at: int) -> np.ndarray:
        try:
            array = to_array(numbers, type.dtype)
        except OverflowError:
            self._lex.fail(f"{type.dtype} cannot hold this value", at)
        if array.size != type.numel:
            self._lex.fail(f"{type} has {type.numel} elements, but {array.size} are given", at)
        return array.reshape(type.shape)

    # ---- the weight blob

    def _blob(self, type: TensorType) -> np.ndarray:
        lex = self._lex
        at = lex.at
        lex.expect("BLOBFILE", "(", "path", "=")
        path = self._field("string")
        lex.expect(",", "offset", "=")
        offset = self._field("uint64")
        lex.expect(")")
        return self.located(at, lambda: self._reader(path).read(offset, type.dtype, type.shape))

    def _field(self, dtype: str) -> Any:
        lex = self._lex
        at = lex.at
        type = self.type()
        if type != TensorType(dtype):
            lex.fail(f"expected a {dtype}, but found {type}", at)
        lex.expect("(")
        payload = self.scalar(dtype)
        lex.expect(")")
        return payload

    def _reader(self, path: str) -> BlobReader:
        if path not in self._readers:
            self._readers[path] = BlobReader(self._file(path))
        return self._readers[path]

    def _file(self, path: str) -> bytes:
        if self._weights is None:
            raise MilError(f"the text takes constants from '{path}', but no weights were given")
        if isinstance(self._weights, Mapping):
            if path not in self._weights:
                raise MilError(f"the weights have no file '{path}'; they have {', '.join(self._weights) or 'none'}")
            return self._weights[path]
        if self._path not in (None, path):
            raise MilError(f"weights lie in two files, '{self._path}' and '{path}'; give them by path")
        self._path = path
        return self._weights


def _convert(dtype: str, token: str) -> Any:
    """Return the number a token spells; raises KeyError, ValueError or OverflowError when it spells none of dtype."""
    if dtype == "bool":
        return BOOLS[token]
    if not is_float(dtype):
        return int(token)
    return float.fromhex(token) if "x" in token.lower() else float(token)
