"""Leased buffers: fp16 tensors over memory that a device can read and write, returned when their last user dies.

Rows (the last axis) start at multiples of the chip's row size. A lease is an ordinary torch tensor; views of it,
and autograd holding it as a saved activation, keep the lease. The memory goes back to the pool when torch frees the
storage.
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

_FP16_BYTES = 2


class BufferPool:
    """Hands out fp16 buffers and takes their memory back for later leases of the same size. Safe across threads."""

    def __init__(self, row_bytes: int) -> None:
        self.row_bytes = row_bytes
        self.allocated_bytes = 0
        self._free: dict[int, list[np.ndarray]] = defaultdict(list)
        self._lock = threading.RLock()  # a finalizer may run while the pool is in use

    def lease(self, shape: tuple[int, ...]) -> Tensor:
        """Return an fp16 tensor of that shape, uninitialised, rows strided to ``row_bytes``."""
        elements = self.nbytes(shape) // _FP16_BYTES
        return torch.from_numpy(self._block(elements)).as_strided(shape, self.strides(shape))

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes that a buffer of that shape takes."""
        return _FP16_BYTES * (shape[0] * self.strides(shape)[0] if len(shape) > 1 else self._pitch(shape))

    def strides(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Strides, in elements, of a buffer of that shape."""
        strides = [1]
        for extent in reversed((*shape[1:-1], self._pitch(shape)) if len(shape) > 1 else ()):
            strides.insert(0, strides[0] * extent)
        return tuple(strides[: len(shape)])

    def _pitch(self, shape: tuple[int, ...]) -> int:
        """Elements from one row to the next."""
        row = (shape[-1] if shape else 1) * _FP16_BYTES
        return -(-row // self.row_bytes) * self.row_bytes // _FP16_BYTES

    def _block(self, elements: int) -> np.ndarray:
        with self._lock:
            free = self._free[elements]
            memory = free.pop() if free else self._allocate(elements)
        lease = memory[:]  # a new array object: torch's storage owns it, and its death ends the lease
        weakref.finalize(lease, self._give_back, memory).atexit = False
        return lease

    def _allocate(self, elements: int) -> np.ndarray:
        nbytes = elements * _FP16_BYTES
        self.allocated_bytes += nbytes
        raw = np.empty(nbytes + self.row_bytes, np.uint8)
        start = -raw.ctypes.data % self.row_bytes
        return raw[start : start + nbytes].view(np.float16)

    def _give_back(self, memory: np.ndarray) -> None:
        with self._lock:
            self._free[memory.size].append(memory)
