"""Buffers that the engine can read and write: tensors over the memory of Espresso's buffer objects."""

from __future__ import annotations

import ctypes
import weakref
from contextlib import ExitStack

import numpy as np

from anew.device.buffers import BufferPool
from anew.device.e5rt.functions import Espresso

#: A plain host pointer; sizes are multiples of 64 bytes (ANEForge 0.4.0).
HOST_MEMORY = 0
GRANULE = 64


class BufferObject:
    """One allocation of the library's, released when neither the pool, a tensor nor an operation holds it."""

    def __init__(self, espresso: Espresso, nbytes: int) -> None:
        with ExitStack() as stack:
            size = -(-nbytes // GRANULE) * GRANULE
            self.handle = espresso.make(stack, "buffer_object_alloc", size, HOST_MEMORY)
            pointer = ctypes.c_void_p()
            espresso.call("buffer_object_get_data_ptr", self.handle, ctypes.byref(pointer))
            if not pointer.value:
                raise espresso.error("buffer_object_get_data_ptr", 0)
            self.address = pointer.value
            weakref.finalize(self, stack.pop_all().close).atexit = False

    def memory(self, nbytes: int) -> np.ndarray:
        """The first bytes as an array that keeps the buffer object alive."""
        block = (ctypes.c_uint8 * nbytes).from_address(self.address)
        block.owner = self  # type: ignore[attr-defined]
        return np.frombuffer(memoryview(block), np.uint8)


class E5rtBufferPool(BufferPool):
    """Leases tensors over buffer objects, and knows the buffer object behind an address."""

    def __init__(self, espresso: Espresso, row_bytes: int) -> None:
        super().__init__(row_bytes)
        self.espresso = espresso
        self.objects: dict[int, BufferObject] = {}

    def _allocate(self, nbytes: int) -> np.ndarray:
        owner = BufferObject(self.espresso, nbytes)
        self.allocated_bytes += nbytes
        self.objects[owner.address] = owner
        return owner.memory(nbytes)
