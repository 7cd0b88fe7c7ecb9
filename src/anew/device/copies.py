"""Which buffers hold what tensors of the host hold: what one program gave the next takes without a copy.

A result that was read is in its buffer still, and an argument that was written serves every layer that takes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

#: Copies that are remembered: what goes from layer to layer, what all layers take, and the tiles of a loss.
MOST = 64
#: Elements of a tensor that are looked at for writes that its version does not show, such as through ``.data``.
SAMPLES = 64


@dataclass(frozen=True)
class Copy:
    """A buffer that holds a tensor times ``2**exponent``, and the largest magnitude in the buffer."""

    buffer: Tensor
    exponent: int
    largest: float


@dataclass(frozen=True)
class _Known:
    copy: Copy
    storage: StorageWeakRef
    identity: tuple[object, ...]
    samples: Tensor


class Copies:
    """Remembers copies by the tensors that they are of, which it does not keep alive."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], _Known] = {}  # by place, the oldest first

    def keep(self, x: Tensor, copy: Copy) -> None:
        """Remember a copy of a contiguous float32 tensor; others are not worth it."""
        if x.dtype != torch.float32 or not x.is_contiguous() or x.numel() == 0 or x.is_inference():
            return
        self._forget_the_dead()
        storage = StorageWeakRef(x.untyped_storage())
        self._known.pop(_place(x), None)
        self._known[_place(x)] = _Known(copy, storage, _identity(x, copy.buffer), _samples(x))
        if len(self._known) > MOST:
            self._known.pop(next(iter(self._known)))

    def find(self, x: Tensor) -> Copy | None:
        """The copy of a tensor, if neither was written to since."""
        if x.dtype != torch.float32 or x.is_inference():
            return None
        self._forget_the_dead()
        known = self._known.get(_place(x))
        if known is None or known.identity != _identity(x, known.copy.buffer) or not x.is_contiguous():
            return None
        return known.copy if torch.equal(known.samples, _samples(x)) else None

    def _forget_the_dead(self) -> None:
        """Give back the buffers of tensors that are gone."""
        for key in [key for key, known in self._known.items() if known.storage.expired()]:
            del self._known[key]


def _place(x: Tensor) -> tuple[int, int]:
    return x.untyped_storage()._cdata, int(x.storage_offset())


def _identity(x: Tensor, buffer: Tensor) -> tuple[object, ...]:
    return x.data_ptr(), x.shape, x._version, buffer._version


def _samples(x: Tensor) -> Tensor:
    return x.detach().view(-1)[:: max(1, x.numel() // SAMPLES)].clone()
