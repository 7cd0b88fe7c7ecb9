"""Buffers that the engine can read and write: tensors over the memory of IOSurfaces.

A surface is locked for the processor from its creation on, and unlocked only while a program runs over it: what the
host wrote is then published to the engine, and what the engine wrote to the host.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import starmap

import numpy as np

from anew.device.ane.methods import COMMON
from anew.device.buffers import BufferPool
from anew.device.foundation import Foundation
from anew.device.framework import FrameworkError
from anew.device.objc import Runtime

#: Surfaces are made of whole pages of Apple silicon.
PAGE = 16384
OBJECT_WITH_SURFACE = "+[_ANEIOSurfaceObject objectWithIOSurface:]"


class SurfaceFunctions:
    """The C functions of IOSurface and what else makes a surface."""

    def __init__(self, runtime: Runtime, foundation: Foundation) -> None:
        #: Whether each surface was the processor's whenever no program ran: no lock has failed.
        self.all_locked = True
        pointer, u32 = ctypes.c_void_p, ctypes.c_uint32
        self.foundation = foundation
        self.create = runtime.function("IOSurfaceCreate", pointer, pointer)
        self.lock = runtime.function("IOSurfaceLock", ctypes.c_int, pointer, u32, pointer)
        self.unlock = runtime.function("IOSurfaceUnlock", ctypes.c_int, pointer, u32, pointer)
        self.locks, self.unlocks = runtime.untyped("IOSurfaceLock"), runtime.untyped("IOSurfaceUnlock")
        self.base_address = runtime.function("IOSurfaceGetBaseAddress", pointer, pointer)
        self.release = runtime.function("CFRelease", None, pointer)
        self.wrap = runtime.method(OBJECT_WITH_SURFACE, COMMON[OBJECT_WITH_SURFACE])
        keys = ("Width", "Height", "BytesPerElement", "BytesPerRow", "AllocSize", "PixelFormat")
        self.keys = {key: runtime.constant(f"kIOSurface{key}") for key in keys}

    def properties(self, nbytes: int) -> int:
        """The dictionary that makes a surface of one row of bytes (maderix/ANE io.h)."""
        values = {"Height": 1, "BytesPerElement": 1, "PixelFormat": 0}
        return self.foundation.dictionary(
            {key: self.foundation.number(values.get(name, nbytes)) for name, key in self.keys.items()}
        )


class Surface:
    """One IOSurface and the object that requests take for it; released when neither pool, tensor nor request needs it.

    Attributes:
        object: address of the ``_ANEIOSurfaceObject``. address, nbytes: of the memory.
        locked: whether the processor may use the memory.
    """

    def __init__(self, functions: SurfaceFunctions, nbytes: int) -> None:
        self.functions, self._lock, self._unlock = functions, functions.lock, functions.unlock
        self.nbytes = -(-nbytes // PAGE) * PAGE
        foundation = functions.foundation
        with ExitStack() as stack, foundation.pool():
            self.handle = functions.create(functions.properties(self.nbytes))
            if not self.handle:
                raise FrameworkError("bind", "IOSurfaceCreate", "IOSurface", 0, f"no surface of {self.nbytes} bytes")
            stack.callback(functions.release, self.handle)
            self.object = foundation.keep(stack, functions.wrap(self.handle), OBJECT_WITH_SURFACE, "bind")
            self.locked = False
            self.lock()
            stack.callback(functions.unlock, self.handle, 0, None)
            self.address = functions.base_address(self.handle)
            if not self.address:
                raise FrameworkError("bind", "IOSurfaceGetBaseAddress", "IOSurface", 0, "no address came back")
            weakref.finalize(self, stack.pop_all().close).atexit = False

    def lock(self) -> None:
        """Give the memory to the processor."""
        if not self.locked:
            if code := self._lock(self.handle, 0, None):
                raise FrameworkError("execute", "IOSurfaceLock", "IOSurface", code)
            self.locked = True

    def unlock(self) -> None:
        """Give the memory to the engine."""
        if self.locked:
            if code := self._unlock(self.handle, 0, None):
                raise FrameworkError("execute", "IOSurfaceUnlock", "IOSurface", code)
            self.locked = False

    def memory(self, nbytes: int) -> np.ndarray:
        """The first bytes as an array that keeps the surface alive."""
        block = (ctypes.c_uint8 * nbytes).from_address(self.address)
        block.owner = self  # type: ignore[attr-defined]
        return np.frombuffer(memoryview(block), np.uint8)


class SurfaceSet:
    """Surfaces that go to the engine together, and come back together."""

    def __init__(self, functions: SurfaceFunctions, surfaces: Iterable[Surface]) -> None:
        self.functions = functions
        self.surfaces = tuple(dict.fromkeys(surfaces))  # state has one surface for two ports
        self._arguments = [(ctypes.c_void_p(surface.handle), 0, None) for surface in self.surfaces]

    def unlock(self) -> None:
        """Give all memory to the engine; raises FrameworkError."""
        if not self.functions.all_locked:
            for surface in self.surfaces:
                surface.unlock()
        elif any(codes := list(starmap(self.functions.unlocks, self._arguments))):
            self._note(codes, locked=False)
            raise FrameworkError("execute", "IOSurfaceUnlock", "IOSurface", next(filter(None, codes)))

    def lock(self) -> None:
        """Give all memory to the processor; raises FrameworkError."""
        if not self.functions.all_locked:
            for surface in self.surfaces:
                surface.lock()
        elif any(codes := list(starmap(self.functions.locks, self._arguments))):
            self._note(codes, locked=True)
            raise FrameworkError("execute", "IOSurfaceLock", "IOSurface", next(filter(None, codes)))

    def _note(self, codes: list[int], *, locked: bool) -> None:
        """One failed: from now on each surface is looked at before it is locked or unlocked."""
        self.functions.all_locked = False
        for surface, code in zip(self.surfaces, codes, strict=True):
            surface.locked = locked != bool(code)


class SurfacePool(BufferPool):
    """Leases tensors over surfaces, and knows the surface behind an address."""

    def __init__(self, functions: SurfaceFunctions, row_bytes: int) -> None:
        super().__init__(row_bytes)
        self.functions = functions
        self.surfaces: dict[int, Surface] = {}

    def _allocate(self, nbytes: int) -> np.ndarray:
        surface = Surface(self.functions, nbytes)
        self.allocated_bytes += nbytes
        self.surfaces[surface.address] = surface
        return surface.memory(nbytes)

    def _give_back(self, number: int, memory: np.ndarray) -> None:
        address = memory.ctypes.data
        if self.surfaces[address].locked:
            super()._give_back(number, memory)
        else:  # the processor could not get it back: it is not used again
            del self.surfaces[address]
