"""Leased buffers: tensors over memory that a device can read and write, returned when their last user dies.

Rows (the last axis) start at multiples of the chip's row size. A lease is an ordinary torch tensor; views of it,
and autograd holding it as a saved activation, keep the lease. The memory goes back to the pool when torch frees the
storage.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor


class BufferPool:
    """Hands out buffers and takes their memory back for later leases of the same size. Safe across threads."""

    def __init__(self, row_bytes: int) -> None:
        self.row_bytes = row_bytes
        self.allocated_bytes = 0
        self._magnitudes: dict[int, tuple[int, float]] = {}
        self._free: dict[int, list[np.ndarray]] = defaultdict(list)
        self._lock = threading.RLock()  # a finalizer may run while the pool is in use

    def lease(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float16) -> Tensor:
        """Return a tensor of that shape, uninitialised, rows strided to ``row_bytes``."""
        memory = torch.from_numpy(self._block(self.nbytes(shape, dtype))).view(dtype)
        return memory.as_strided(shape, self.strides(shape, dtype))

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float16) -> int:
        """Bytes that a buffer of that shape takes."""
        return _layout(self.row_bytes, shape, dtype)[1]

    def strides(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float16) -> tuple[int, ...]:
        """Strides, in elements, of a buffer of that shape."""
        return _layout(self.row_bytes, shape, dtype)[0]

    def holds(self, buffer: Tensor) -> bool:
        """Whether a tensor's memory is laid out as a lease of its shape: the engine reads and writes whole rows."""
        strides, nbytes = _layout(self.row_bytes, buffer.shape, buffer.dtype)
        room = buffer.untyped_storage().nbytes() - buffer.storage_offset() * buffer.itemsize
        return buffer.stride() == strides and room >= nbytes

    def note(self, buffer: Tensor, magnitude: float) -> None:
        """Remember what no element of a whole lease exceeds, for as long as the lease lives and is not written to."""
        self._magnitudes[buffer.data_ptr()] = buffer._version, magnitude

    def magnitude(self, buffer: Tensor) -> float | None:
        """What was noted of a lease; None if nothing was, or it was written to since."""
        version, magnitude = self._magnitudes.get(buffer.data_ptr(), (None, None))
        return magnitude if version == buffer._version else None

    def _block(self, nbytes: int) -> np.ndarray:
        with self._lock:
            free = self._free[nbytes]
            memory = free.pop() if free else self._allocate(nbytes)
        lease = memory[:]  # a new array object: torch's storage owns it, and its death ends the lease
        weakref.finalize(lease, self._give_back, memory).atexit = False
        return lease

    def _allocate(self, nbytes: int) -> np.ndarray:
        self.allocated_bytes += nbytes
        raw = np.empty(nbytes + self.row_bytes, np.uint8)
        start = -raw.ctypes.data % self.row_bytes
        return raw[start : start + nbytes]

    def _give_back(self, memory: np.ndarray) -> None:
        with self._lock:
            self._magnitudes.pop(memory.ctypes.data, None)
            self._free[memory.size].append(memory)


@functools.lru_cache(4096)
def _layout(row_bytes: int, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[tuple[int, ...], int]:
    """Strides in elements, and bytes in all, of a buffer whose rows start at multiples of ``row_bytes``."""
    row = (shape[-1] if shape else 1) * dtype.itemsize
    pitch = -(-row // row_bytes) * row_bytes // dtype.itemsize  # elements from one row to the next
    strides = [1]
    for extent in reversed((*shape[1:-1], pitch) if len(shape) > 1 else ()):
        strides.insert(0, strides[0] * extent)
    elements = shape[0] * strides[0] if len(shape) > 1 else pitch
    return tuple(strides[: len(shape)]), dtype.itemsize * elements
