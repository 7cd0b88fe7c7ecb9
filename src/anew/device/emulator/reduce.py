"""Sums along axes, accumulated narrowly as the engine does. Class: calibrated, not bit-exact.

The order in which the engine adds is not known. The figures (ANEForge 0.4.0; facts: other numerics) show an
error several times that of one rounding, hence a handful of fp16 partial sums along the way. The model:
every 32 neighbours are summed without rounding, 32 lanes take these sums in turn, rounding after each, and a
binary tree adds the lanes, rounding at each of its five levels.

Relative error over rows of 4096 values of N(0, 1) rounded to fp16: the model gives 8.02e-4 to 8.04e-4 (16384
rows). Published: 8.07e-4 (M4 and later, 2048 rows), 8.09e-4 (M1 and M2, 2048 rows), 8.13e-4 (M1 and M2, 8192
rows), so the model is within 1.5 percent; figures from 64 or 256 rows (7.2e-4 to 8.3e-4) scatter more
than that. Other lengths are extrapolated. Totals of integers up to 2048 are exact, and 2049 becomes 2050, as
measured.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from anew.device.emulator.rounding import round_elementwise_

__all__ = ["narrow_sum"]

_EXACT = 32
"""Neighbours summed without rounding."""
_LANES = 32
"""Partial sums kept side by side; fewer for rows shorter than `_EXACT * _LANES`."""


def narrow_sum(x: Tensor, dims: Sequence[int], keepdim: bool, exact: bool) -> Tensor:
    """Sum along axes with the roundings of the engine's narrow accumulation.

    Args:
        x: float32 on the fp16 grid, any shape and strides.
        dims: the axes to sum over, negative ones counted from the end; none leaves `x` as it is.
        keepdim: keep the summed axes with length one.
        exact: round the partial sums as the module describes; otherwise sum in float32 and round once.

    Returns:
        Contiguous float32 tensor on the fp16 grid; partial sums beyond 65504 become infinite.

    Raises:
        IndexError: an axis out of range.
    """
    axes = sorted(d % x.dim() if -x.dim() <= d < x.dim() else _out_of_range(d, x) for d in dims)
    if not axes:
        return x.contiguous()
    if not exact:
        return round_elementwise_(x.sum(axes, keepdim=keepdim))
    kept = [d for d in range(x.dim()) if d not in axes]
    shape = [1 if d in axes else n for d, n in enumerate(x.shape) if keepdim or d not in axes]
    rows = x.permute(*kept, *axes).reshape(*(x.shape[d] for d in kept), -1)
    return _sum_rows(rows).view(shape)


def _out_of_range(dim: int, x: Tensor) -> int:
    raise IndexError(f"axis {dim} out of range for a tensor of {x.dim()} axes")


def _padded(x: Tensor, multiple: int) -> Tensor:
    """Extend the last axis with zeros, which change no partial sum."""
    extra = -x.shape[-1] % multiple
    return F.pad(x, (0, extra)) if extra else x


def _sum_rows(rows: Tensor) -> Tensor:
    """Sum the last axis."""
    partial = _padded(rows, _EXACT).unflatten(-1, (-1, _EXACT)).sum(-1)
    lanes = min(_LANES, 1 << max(partial.shape[-1] - 1, 0).bit_length())
    steps = _padded(partial, lanes).unflatten(-1, (-1, lanes)).unbind(-2)
    total = round_elementwise_(steps[0].contiguous())
    for step in steps[1:]:
        total = round_elementwise_(total + step)
    while total.shape[-1] > 1:
        low, high = total.chunk(2, dim=-1)
        total = round_elementwise_(low + high)
    return total.squeeze(-1)
