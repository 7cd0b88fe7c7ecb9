"""Leased buffers: tensors over memory that a device can read and write, returned when their last user dies.

Rows (the last axis) start at multiples of the chip's row size. A lease is an ordinary torch tensor; views of it,
and autograd holding it as a saved activation, keep the lease. The memory goes back to the pool when torch frees the
storage.
"""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections import defaultdict
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """How a buffer of a shape and type lies in memory: one object for all that are alike, told apart by identity.

    Attributes:
        strides: in elements. nbytes: of the whole buffer.
    """

    strides: tuple[int, ...]
    nbytes: int


class BufferPool:
    """Hands out buffers and takes their memory back for later leases of the same size. Safe across threads."""

    def __init__(self, row_bytes: int) -> None:
        self.row_bytes = row_bytes
        self.allocated_bytes = 0
        self._magnitudes: dict[int, tuple[int, float]] = {}
        self._numbers = itertools.count()
        #: By size, a heap of free blocks by number. The first is leased, not the last that came free: so a training
        #: step leases the very buffers of the step before, and the requests made for them are those of this step.
        self._free: dict[int, list[tuple[int, np.ndarray]]] = defaultdict(list)
        self._lock = threading.RLock()  # a finalizer may run while the pool is in use

    def lease(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float16) -> Tensor:
        """Return a tensor of that shape, uninitialised, rows strided to ``row_bytes``.

        It says so itself, in ``lease.leased_as``, so that it need not be looked at again whenever it is bound.
        """
        layout = _layout(self.row_bytes, shape, dtype)
        lease = torch.from_numpy(self._block(layout.nbytes)).view(dtype).as_strided(shape, layout.strides)
        lease.leased_as = layout  # type: ignore[attr-defined]
        return lease

    def layout(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float16) -> Layout:
        """How leases of that shape lie in memory."""
        return _layout(self.row_bytes, shape, dtype)

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float16) -> int:
        """Bytes that a buffer of that shape takes."""
        return self.layout(shape, dtype).nbytes

    def strides(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float16) -> tuple[int, ...]:
        """Strides, in elements, of a buffer of that shape."""
        return self.layout(shape, dtype).strides

    def holds(self, buffer: Tensor) -> bool:
        """Whether a tensor's memory is laid out as a lease of its shape: the engine reads and writes whole rows."""
        layout = self.layout(buffer.shape, buffer.dtype)
        room = buffer.untyped_storage().nbytes() - buffer.storage_offset() * buffer.itemsize
        return buffer.stride() == layout.strides and room >= layout.nbytes

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
            number, memory = heappop(free) if free else (next(self._numbers), self._allocate(nbytes))
        lease = memory[:]  # a new array object: torch's storage owns it, and its death ends the lease
        weakref.finalize(lease, self._give_back, number, memory).atexit = False
        return lease

    def _allocate(self, nbytes: int) -> np.ndarray:
        self.allocated_bytes += nbytes
        raw = np.empty(nbytes + self.row_bytes, np.uint8)
        start = -raw.ctypes.data % self.row_bytes
        return raw[start : start + nbytes]

    def _give_back(self, number: int, memory: np.ndarray) -> None:
        with self._lock:
            self._magnitudes.pop(memory.ctypes.data, None)
            heappush(self._free[memory.size], (number, memory))


@functools.lru_cache(4096)
def _layout(row_bytes: int, shape: tuple[int, ...], dtype: torch.dtype) -> Layout:
    """The layout of a buffer whose rows start at multiples of ``row_bytes``."""
    row = (shape[-1] if shape else 1) * dtype.itemsize
    pitch = -(-row // row_bytes) * row_bytes // dtype.itemsize  # elements from one row to the next
    strides = [1]
    for extent in reversed((*shape[1:-1], pitch) if len(shape) > 1 else ()):
        strides.insert(0, strides[0] * extent)
    elements = shape[0] * strides[0] if len(shape) > 1 else pitch
    return Layout(tuple(strides[: len(shape)]), dtype.itemsize * elements)
