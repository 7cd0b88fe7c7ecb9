"""Types of MIL values: element types, tensor types, and how they are spelled in MIL text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

#: Every element type MIL text names here, with its size in bytes (strings have none).
ELEMENT_BYTES: dict[str, int] = {
    "fp16": 2,
    "fp32": 4,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "int32": 4,
    "uint64": 8,
    "bool": 1,
    "string": 0,
}

_NUMPY: dict[str, type] = {
    "fp16": np.float16,
    "fp32": np.float32,
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "int32": np.int32,
    "uint64": np.uint64,
    "bool": np.bool_,
}


def numpy_dtype(element: str) -> np.dtype:
    """Return the numpy dtype of a MIL element type; ``string`` has none and raises KeyError."""
    return np.dtype(_NUMPY[element])


@dataclass(frozen=True)
class TensorType:
    """The type of a MIL value: an element type and a static shape; a scalar has shape ``()``."""

    dtype: str
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in ELEMENT_BYTES:
            raise ValueError(f"unknown MIL element type '{self.dtype}'; known: {', '.join(ELEMENT_BYTES)}")

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
        return self.numel * ELEMENT_BYTES[self.dtype]

    def __str__(self) -> str:
        if not self.shape:
            return self.dtype
        return f"tensor<{self.dtype}, [{', '.join(map(str, self.shape))}]>"
