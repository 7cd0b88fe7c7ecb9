"""Tensors that two processes see: a pool over files that both map, and how one tells the other where a tensor lies."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anew.device.base import Port
from anew.device.buffers import BufferPool

#: Where shared files live in memory; elsewhere they are ordinary files, kept in the system's cache of files.
MEMORY_FOLDER = Path("/dev/shm")
#: Smallest file: small buffers share one.
FILE_BYTES = 1 << 24
GRANULE = 64


@dataclass(frozen=True)
class Place:
    """Where a buffer lies: in which shared file, and from which byte on."""

    file: int
    offset: int


class SharedPool(BufferPool):
    """Leases tensors over shared files in a folder."""

    def __init__(self, row_bytes: int, folder: Path) -> None:
        super().__init__(row_bytes)
        self.folder = folder
        self.places: dict[int, Place] = {}
        self._files = 0
        self._room = np.empty(0, np.uint8)
        self._used = 0

    def _allocate(self, nbytes: int) -> np.ndarray:
        size = -(-nbytes // GRANULE) * GRANULE
        if self._used + size > self._room.size:
            self._files += 1
            self._room, self._used = create_file(self.folder, self._files, max(size, FILE_BYTES)), 0
        block = self._room[self._used : self._used + nbytes]
        self.places[block.ctypes.data] = Place(self._files, self._used)
        self._used += size
        self.allocated_bytes += nbytes
        return block


def create_file(folder: Path, number: int, size: int) -> np.ndarray:
    """Make a shared file and map it."""
    with open(folder / str(number), "w+b") as file:
        file.truncate(size)
        return np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8)


@dataclass
class SharedFiles:
    """The files of a pool, as the other process maps them."""

    folder: Path
    row_bytes: int
    _mapped: dict[int, np.ndarray] = field(default_factory=dict)

    def tensor(self, port: Port, place: Place) -> Tensor:
        """The buffer of a port that lies at a place."""
        if place.file not in self._mapped:
            with open(self.folder / str(place.file), "r+b") as file:
                self._mapped[place.file] = np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8)
        layout, shape = BufferPool(self.row_bytes), port.type.shape
        end = place.offset + layout.nbytes(shape, port.dtype)
        memory = torch.from_numpy(self._mapped[place.file][place.offset : end]).view(port.dtype)
        return memory.as_strided(shape, layout.strides(shape, port.dtype))
