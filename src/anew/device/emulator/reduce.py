"""Sums along axes, accumulated narrowly as the engine does. Class: calibrated, not bit-exact.

The order in which the engine adds is not known. The figures (ANEForge 0.4.0; facts: other numerics) show an
error several times that of one rounding, hence a handful of fp16 partial sums along the way. The model:
every 32 neighbours are summed without rounding, 32 lanes take these sums in turn, rounding after each, and a
binary tree adds the lanes, rounding at each of its five levels.

Fitted to rows of 4096 values of N(0, 1), the only length published, which differ little between chips: how far each
published error is from the model's on the very same values, ``python -m evidence functions`` records
(docs/arithmetic.md). Other lengths are extrapolated. Totals of integers up to 2048 are exact, and 2049 becomes
2050, as measured.
"""

from collections.abc import Sequence

import numba
import numpy as np
import torch
from numba import prange
from torch import Tensor

from anew.device.emulator.rounding import elementwise_rule, flat
from anew.device.team import kernel

__all__ = ["LANES", "narrow_sum", "row_sum"]

_EXACT = 32
"""Neighbours summed without rounding."""
LANES = 32
"""Partial sums kept side by side; fewer for rows shorter than `_EXACT * LANES`."""
_ROWS = 16
"""Rows that share the room for their lanes."""


def narrow_sum(x: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    """Sum along axes with the roundings of the engine's narrow accumulation.

    Args:
        x: float32 on the fp16 grid, any shape and strides.
        dims: the axes to sum over, negative ones counted from the end; none leaves `x` as it is.
        keepdim: keep the summed axes with length one.

    Returns:
        Contiguous float32 tensor on the fp16 grid; partial sums beyond 65504 become infinite.

    Raises:
        IndexError: an axis out of range.
    """
    axes = sorted(d % x.dim() if -x.dim() <= d < x.dim() else _out_of_range(d, x) for d in dims)
    if not axes:
        return x.contiguous()
    kept = [d for d in range(x.dim()) if d not in axes]
    out = torch.empty([1 if d in axes else n for d, n in enumerate(x.shape) if keepdim or d not in axes])
    rows = flat(x.permute(*kept, *axes).contiguous()).reshape(out.numel(), -1)
    _sum_rows(rows, flat(out))
    return out


def _out_of_range(dim: int, x: Tensor) -> int:
    raise IndexError(f"axis {dim} out of range for a tensor of {x.dim()} axes")


@kernel
def _sum_rows(rows: np.ndarray, out: np.ndarray) -> None:
    for block in prange(-(-len(rows) // _ROWS)):
        lanes = np.empty(LANES, np.float32)
        for i in range(block * _ROWS, min((block + 1) * _ROWS, len(rows))):
            out[i] = row_sum(rows[i], lanes)


@numba.njit(inline="always")
def row_sum(row: np.ndarray, lanes: np.ndarray) -> np.float32:
    """The narrow sum of one row (inside numba kernels only); `lanes` is room for `LANES` numbers."""
    width = 1
    while width < LANES and width * _EXACT < row.size:
        width *= 2
    lanes[:] = np.float32(0.0)
    for start in range(0, row.size, _EXACT):
        lane = start // _EXACT % width
        lanes[lane] = elementwise_rule(lanes[lane] + _neighbours(row[start : start + _EXACT]))
    while width > 1:
        width //= 2
        for lane in range(width):
            lanes[lane] = elementwise_rule(lanes[lane] + lanes[lane + width])
    return lanes[0]


@numba.njit(inline="always")
def _neighbours(x: np.ndarray) -> np.float32:
    """A sum in float32, in four strands so that no addition waits for the one before."""
    a = b = c = d = np.float32(0.0)
    whole = x.size // 4 * 4
    for i in range(0, whole, 4):
        a += x[i]
        b += x[i + 1]
        c += x[i + 2]
        d += x[i + 3]
    for i in range(whole, x.size):
        a += x[i]
    return (a + b) + (c + d)
