"""Whether a tensor still has the numbers that a copy was made from, without reading all of it each time.

An in-place operation counts up the tensor's version, and other memory has another address. A write through ``.data``
shows in neither: of those, every look sees the dense ones, and so many looks together see all.
"""

from __future__ import annotations

import itertools
import zlib
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from anew.device.team import kernel

#: Elements of a tensor that every look compares, spread over it.
SAMPLES = 64
#: Looks that compare every element between them.
LOOKS = 10
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


#: Storage, version and checksum of samples.
Mark = tuple[int, int, int]


class StaleWarning(UserWarning):
    """Copies were used for some calls after the weights they were made from had changed."""


class Original:
    """What a tensor was when it was copied.

    Attributes:
        looks: so many were taken.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.mark = mark(tensor)
        self.parts = [_checksum(part) for part in _parts(tensor)]
        self.looks = 0

    def marked(self, tensor: Tensor) -> bool:
        """Whether storage, version and samples are as they were: in-place operations and dense writes change them."""
        return mark(tensor) == self.mark

    def rewritten(self, tensor: Tensor) -> bool:
        """Whether the next tenth of the tensor is another than it was."""
        at = self.looks % LOOKS
        self.looks += 1
        return _checksum(_parts(tensor)[at]) != self.parts[at]

    def rewritten_anywhere(self, tensor: Tensor) -> bool:
        """Whether any element of the tensor is another than it was."""
        return [_checksum(part) for part in _parts(tensor)] != self.parts


def late(what: str, cure: str) -> StaleWarning:
    """The warning that a change was found by reading the elements, after calls that may have used the copy."""
    return StaleWarning(
        f"{what} was written through its data, in few places; up to {LOOKS} calls used the copy made of the old "
        f"numbers. {cure}"
    )


def mark(tensor: Tensor) -> Mark:
    """Storage, version and a checksum of samples of a tensor: in-place operations and dense writes change them."""
    flat = tensor.detach().reshape(-1)
    samples = flat[:: max(flat.numel() // SAMPLES, 1)].view(_INTEGERS[flat.element_size()])
    return tensor.data_ptr(), tensor._version, zlib.crc32(samples.numpy().tobytes())


def _parts(tensor: Tensor) -> list[np.ndarray[Any, Any]]:
    flat = tensor.detach().reshape(-1)
    bits = flat.view(_INTEGERS[flat.element_size()]).numpy()
    bounds = [bits.size * i // LOOKS for i in range(LOOKS + 1)]
    return [bits[start:stop] for start, stop in itertools.pairwise(bounds)]


@kernel
def _checksum(bits: np.ndarray) -> np.int64:
    """The sum of all numbers, each times an odd one of its own, so that places count."""
    total = np.int64(0)
    for task in prange(64):
        own = np.int64(0)
        for i in range(bits.size * np.int64(task) // 64, bits.size * (np.int64(task) + 1) // 64):
            own += np.int64(bits[i]) * (2 * i + 1)
        total += own
    return total
