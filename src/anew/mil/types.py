"""Types of MIL values: element types, tensor types, and how they are spelled in MIL text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Every element type that MIL text names here, with its size in bits (strings have none).
ELEMENT_BITS: dict[str, int] = {
    "fp16": 16,
    "fp32": 32,
    "int4": 4,
    "int8": 8,
    "int16": 16,
    "int32": 32,
    "uint1": 1,
    "uint2": 2,
    "uint3": 3,
    "uint4": 4,
    "uint6": 6,
    "uint8": 8,
    "uint16": 16,
    "uint32": 32,
    "uint64": 64,
    "bool": 8,
    "string": 0,
}

_NUMPY: dict[str, type] = {
    "fp16": np.float16,
    "fp32": np.float32,
    "int4": np.int8,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "uint1": np.uint8,
    "uint2": np.uint8,
    "uint3": np.uint8,
    "uint4": np.uint8,
    "uint6": np.uint8,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
}


def numpy_dtype(element: str) -> np.dtype:
    """Return the numpy dtype that holds a MIL element type; one narrower than a byte takes a byte an element.

    Raises KeyError for ``string``, which has none.
    """
    return np.dtype(_NUMPY[element])


def is_float(element: str) -> bool:
    """Say whether an element type is a floating-point one."""
    return element in ("fp16", "fp32")


def to_array(numbers: Any, element: str) -> np.ndarray:
    """Return numbers as an array of a MIL element type, of the shape they have.

    Raises OverflowError when the type cannot hold one, ValueError or TypeError when they are no numbers.
    """
    try:
        with np.errstate(over="raise"):
            array = np.asarray(numbers, numpy_dtype(element))
    except FloatingPointError as error:
        raise OverflowError(str(error)) from None
    if ELEMENT_BITS[element] < 8 and array.size:
        low, high = integer_range(element)
        if array.min() < low or array.max() > high:
            raise OverflowError(f"outside {low} to {high}")
    return array


def integer_range(element: str) -> tuple[int, int]:
    """Return the least and the greatest value of an integer element type."""
    bits = ELEMENT_BITS[element]
    return (0, 2**bits - 1) if element.startswith("uint") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@dataclass(frozen=True)
class TensorType:
    """The type of a MIL value: an element type and a static shape; a scalar has shape ``()``."""

    dtype: str
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in ELEMENT_BITS:
            raise ValueError(f"unknown MIL element type '{self.dtype}'; known: {', '.join(ELEMENT_BITS)}")

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of a packed copy."""
        return -(-self.numel * ELEMENT_BITS[self.dtype] // 8)

    def __str__(self) -> str:
        if not self.shape:
            return self.dtype
        return f"tensor<{self.dtype}, [{', '.join(map(str, self.shape))}]>"
