"""Lowering of standardisation, which layer, group and batch norm share, and of spreads: variance and norms.

Values are divided by their largest magnitude before they are squared, so that no square leaves fp16 at any scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.fx import Node

from anew.compiler.lowering.reduction import SMALLEST_ROW_MAXIMUM, norm_bound, refined_rsqrt
from anew.compiler.lowering.table import Lowering, NotLowered, lowers, shape_of
from anew.mil import Value

aten = torch.ops.aten
anew = torch.ops.anew

#: The least variance, of values of magnitude 1, that is divided by: less is rounding, of a row that is constant.
SMALLEST_VARIANCE = 2.0**-20


def mean(low: Lowering, x: Value, axes: Sequence[int]) -> Value:
    """Mean over axes, kept; one axis after the other, as the engine's sums are narrow and end at 65504."""
    for axis in sorted((a % x.type.rank for a in axes), reverse=True):
        x = low.op("reduce_mean", x=x, axes=[axis], keep_dims=True)
    return x


def _peak(low: Lowering, x: Value, axes: Sequence[int]) -> Value:
    peak = low.op("reduce_max", x=low.op("abs", x=x), axes=axes, keep_dims=True)
    return low.op("maximum", x=peak, y=SMALLEST_ROW_MAXIMUM)


@lowers(anew.standardize.default)
def _standardize(low: Lowering, node: Node, x: Value, axes: Sequence[int], eps: float) -> tuple[Value, Value, Value]:
    peak = _peak(low, x, axes)
    unit = low.op("real_div", x=x, y=peak)
    centre = mean(low, unit, axes)
    centred = low.op("sub", x=unit, y=centre)
    drift = mean(low, centred, axes)  # what the rounding of the centre left
    centred = low.op("sub", x=centred, y=drift)
    # eps / peak^2 in two steps: eps itself may be a subnormal of fp16, its root is not
    root = low.op("real_div", x=float(eps) ** 0.5, y=peak)
    variance = low.op("add", x=mean(low, low.op("mul", x=centred, y=centred), axes), y=low.op("mul", x=root, y=root))
    scale = refined_rsqrt(low, low.op("maximum", x=variance, y=SMALLEST_VARIANCE))
    centre = low.op("mul", x=low.op("add", x=centre, y=drift), y=peak)
    normed = low.op("mul", x=centred, y=scale)
    normed.bound = norm_bound(math.prod(x.shape[a] for a in axes))
    return normed, low.op("real_div", x=scale, y=peak), centre


@lowers(anew.standardize_backward.default)
def _standardize_backward(
    low: Lowering, node: Node, grad: Value, normed: Value, rstd: Value, axes: Sequence[int]
) -> Value:
    normed.bound = norm_bound(math.prod(normed.shape[a] for a in axes))
    along = mean(low, low.op("mul", x=grad, y=normed), axes)
    rest = low.op("sub", x=low.op("sub", x=grad, y=mean(low, grad, axes)), y=low.op("mul", x=normed, y=along))
    return low.op("mul", x=rest, y=rstd)


def _axes(x: Value, dims: Sequence[int] | int | None) -> list[int]:
    given = [dims] if isinstance(dims, int) else (dims or range(x.type.rank))
    return sorted(d % x.type.rank for d in given)


def _deviation(
    low: Lowering, x: Value, dims: Sequence[int] | None, correction: float | None
) -> tuple[Value, Value, float]:
    """The variance of x over its peak, the peak, and the factor by which the correction enlarges the variance."""
    axes = _axes(x, dims)
    count = math.prod(x.shape[a] for a in axes)
    taken = 1 if correction is None else correction
    if count <= taken:
        raise NotLowered(f"a variance of {count} values with correction {taken} is not a number")
    centred = low.op("sub", x=x, y=mean(low, x, axes))
    peak = _peak(low, centred, axes)
    unit = low.op("real_div", x=centred, y=peak)
    return mean(low, low.op("mul", x=unit, y=unit), axes), peak, count / (count - taken)


@lowers(aten.var.correction)
def _var(
    low: Lowering,
    node: Node,
    x: Value,
    dims: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Value:
    variance, peak, factor = _deviation(low, x, dims, correction)
    scaled = low.op("mul", x=low.op("mul", x=low.op("mul", x=variance, y=factor), y=peak), y=peak)
    return low.reshape(scaled, shape_of(node))


@lowers(aten.std.correction)
def _std(
    low: Lowering,
    node: Node,
    x: Value,
    dims: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Value:
    variance, peak, factor = _deviation(low, x, dims, correction)
    root = low.sqrt(low.op("mul", x=variance, y=factor))
    return low.reshape(low.op("mul", x=root, y=peak), shape_of(node))


@lowers(aten.linalg_vector_norm.default)
def _vector_norm(
    low: Lowering,
    node: Node,
    x: Value,
    order: float = 2,
    dims: Sequence[int] | None = None,
    keepdim: bool = False,
    dtype: object = None,
) -> Value:
    if order != 2:
        raise NotLowered(f"a vector norm of order {order}; anew takes order 2")
    axes = _axes(x, dims)
    peak = _peak(low, x, axes)
    unit = low.op("real_div", x=x, y=peak)
    total = low.op("reduce_sum", x=low.op("mul", x=unit, y=unit), axes=axes, keep_dims=True)
    return low.reshape(low.op("mul", x=low.sqrt(total), y=peak), shape_of(node))
