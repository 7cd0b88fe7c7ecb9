"""Softmax as the engine composes it: maximum, difference, exponential, sum, reciprocal, product. Class: calibrated.

Each step is rounded to fp16 as it would be alone; exponential and reciprocal are the tables of those operations, the
sum is the narrow one. Nothing is fitted to the published errors of softmax itself; how far it is from them:
``python -m evidence functions``, docs/arithmetic.md.
An infinite element takes all the mass, as measured (source: ane-guide, part 1, Numerics; M1).
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor

from anew.device.emulator.lookup import function_table, gather, slot
from anew.device.emulator.reduce import LANES, row_sum
from anew.device.emulator.rounding import elementwise_rule, flat
from anew.device.team import kernel

__all__ = ["softmax"]

_ROWS = 16
"""Rows that share the room for their places."""


def softmax(x: Tensor, axis: int) -> Tensor:
    """Return the softmax of a float32 tensor on the fp16 grid along an axis, on that grid; any shape and strides."""
    if x.numel() == 0:
        return torch.empty_like(x)
    moved = x.movedim(axis, -1).contiguous()
    out = torch.empty_like(moved)
    rows, tops = flat(moved).reshape(-1, moved.shape[-1]), flat(moved.amax(-1))
    _softmax_rows(rows, tops, function_table("exp"), function_table("inverse"), flat(out).reshape(rows.shape))
    return out.movedim(-1, axis)


@kernel
def _softmax_rows(rows: np.ndarray, tops: np.ndarray, exp: np.ndarray, inverse: np.ndarray, out: np.ndarray) -> None:
    for block in prange(-(-len(rows) // _ROWS)):
        lanes, places = np.empty(LANES, np.float32), np.empty(rows.shape[1], np.int32)
        for i in range(block * _ROWS, min((block + 1) * _ROWS, len(rows))):
            row, result = rows[i], out[i]
            gather(row, tops[i], exp, places, result)
            factor = inverse[slot(row_sum(result, lanes))]
            for j in range(row.size):
                result[j] = elementwise_rule(result[j] * factor)
