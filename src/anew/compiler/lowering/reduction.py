"""Lowering of reductions, softmax and norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from anew.compiler.custom_ops import MASKED
from anew.compiler.lowering.comparison import truth
from anew.compiler.lowering.table import Lowering, lowers, shape_of
from anew.mil import Value

aten = torch.ops.aten
anew = torch.ops.anew

#: Rows whose magnitudes all lie below this are normalised with it in the place of their maximum.
SMALLEST_ROW_MAXIMUM = 2.0**-10


@lowers(aten.sum.dim_IntList)
def _sum(
    low: Lowering, node: Node, x: Value, dims: Sequence[int] | None, keepdim: bool = False, dtype: object = None
) -> Value:
    axes = sorted(d % x.type.rank for d in (dims or range(x.type.rank)))
    if axes == list(range(len(axes))) and len(axes) < x.type.rank and _fits_as_product(low, x, len(axes)):
        return low.reshape(_sum_leading(low, x, len(axes)), shape_of(node))
    return low.op("reduce_sum", x=x, axes=axes, keep_dims=keepdim)


def _fits_as_product(low: Lowering, x: Value, axes: int) -> bool:
    return max(math.prod(x.shape[:axes]), math.prod(x.shape[axes:])) <= low.chip.max_axis


def _sum_leading(low: Lowering, x: Value, axes: int) -> Value:
    """Sum over the leading axes as a product with ones: the array sums exactly, reduce_sum in narrow partial sums."""
    rows = math.prod(x.shape[:axes])
    flat = low.reshape(x, (rows, x.type.numel // rows))
    ones = low.builder.array(np.ones((1, rows)), "ones")
    return low.matmul(ones, flat)


@lowers(aten.mean.dim)
def _mean(
    low: Lowering, node: Node, x: Value, dims: Sequence[int] | None, keepdim: bool = False, dtype: object = None
) -> Value:
    axes = sorted(d % x.type.rank for d in (dims or range(x.type.rank)))
    return low.op("reduce_mean", x=x, axes=axes, keep_dims=keepdim)


def _extremum(kind: str) -> Callable[..., Value]:
    def lower(low: Lowering, node: Node, x: Value, dims: Sequence[int] = (), keepdim: bool = False) -> Value:
        axes = sorted(d % x.type.rank for d in (dims or range(x.type.rank)))
        return low.op(kind, x=x, axes=axes, keep_dims=keepdim)

    return lower


lowers(aten.amax.default)(_extremum("reduce_max"))
lowers(aten.amin.default)(_extremum("reduce_min"))


@lowers(anew.amax.default)
def _amax(low: Lowering, node: Node, x: Value, axes: Sequence[int]) -> Value:
    return low.op("reduce_max", x=x, axes=axes, keep_dims=True)


@lowers(anew.amax_backward.default)
def _amax_backward(low: Lowering, node: Node, grad: Value, x: Value, y: Value, axes: Sequence[int]) -> Value:
    hits = truth(low, low.op("equal", x=x, y=y))
    count = low.op("reduce_sum", x=hits, axes=axes, keep_dims=True)
    return low.op("mul", x=hits, y=low.op("real_div", x=grad, y=count))


@lowers(aten.logsumexp.default)
def _logsumexp(low: Lowering, node: Node, x: Value, dims: Sequence[int], keepdim: bool = False) -> Value:
    axes = sorted(d % x.type.rank for d in dims)
    peak = low.op("reduce_max", x=x, axes=axes, keep_dims=True)
    total = low.op("reduce_sum", x=low.op("exp", x=low.op("sub", x=x, y=peak)), axes=axes, keep_dims=True)
    return low.reshape(low.op("add", x=low.op("log", x=total, epsilon=0.0), y=peak), shape_of(node))


@lowers(aten._softmax.default)
def _softmax(low: Lowering, node: Node, x: Value, dim: int, half_to_float: bool) -> Value:
    y = low.op("softmax", x=x, axis=dim)
    _mark(y, dim)
    return y


def _mark(y: Value, dim: int) -> None:
    """Note of a value that it is softmax."""
    y.bound, y.softmax = 1.0, dim in (-1, y.type.rank - 1)


@lowers(aten._softmax_backward_data.default)
def _softmax_backward(low: Lowering, node: Node, grad: Value, y: Value, dim: int, dtype: object) -> Value:
    _mark(y, dim)
    total = low.op("reduce_sum", x=low.op("mul", x=grad, y=y), axes=[dim], keep_dims=True)
    return low.op("mul", x=y, y=low.op("sub", x=grad, y=total))


@lowers(anew.softmax_backward.default)
def _softmax_backward_by_total(low: Lowering, node: Node, grad: Value, y: Value, total: Value) -> Value:
    _mark(y, -1)
    rest = low.op("sub", x=grad, y=total)
    rest.around_mean = grad
    return low.op("mul", x=y, y=rest)


@lowers(anew.rms_norm.default)
def _rms_norm(low: Lowering, node: Node, x: Value, eps: float) -> tuple[Value, Value]:
    """Each row is divided by its largest magnitude first, so that no square leaves fp16 whatever the row's scale."""
    peak = low.op("reduce_max", x=low.op("abs", x=x), axes=[-1], keep_dims=True)
    peak = low.op("maximum", x=peak, y=SMALLEST_ROW_MAXIMUM)
    unit = low.op("real_div", x=x, y=peak)
    mean = low.op("reduce_mean", x=low.op("mul", x=unit, y=unit), axes=[-1], keep_dims=True)
    # eps / peak^2 in two steps: eps itself may be a subnormal of fp16, its root is not
    root = low.op("real_div", x=float(eps) ** 0.5, y=peak)
    scale = refined_rsqrt(low, low.op("add", x=mean, y=low.op("mul", x=root, y=root)))
    normed = low.op("mul", x=unit, y=scale)
    normed.bound = norm_bound(x.shape[-1])
    return normed, low.op("real_div", x=scale, y=peak)


def norm_bound(count: int) -> float:
    """What no one of so many numbers of mean square 1 exceeds, with room for the rounding of narrow sums."""
    return 1.25 * count**0.5


def refined_rsqrt(low: Lowering, x: Value) -> Value:
    """The reciprocal root of positive numbers: a Newton step takes the error of the engine's table out of the rows."""
    guess = low.rsqrt(x)
    half = low.op("mul", x=low.op("mul", x=low.op("mul", x=x, y=guess), y=guess), y=0.5)
    return low.op("mul", x=guess, y=low.op("sub", x=1.5, y=half))


@lowers(anew.rms_norm_backward.default)
def _rms_norm_backward(low: Lowering, node: Node, grad: Value, normed: Value, rstd: Value) -> Value:
    normed.bound = norm_bound(normed.shape[-1])
    along = low.op("reduce_mean", x=low.op("mul", x=grad, y=normed), axes=[-1], keep_dims=True)
    rest = low.op("sub", x=grad, y=low.op("mul", x=normed, y=along))
    return low.op("mul", x=rest, y=rstd)


@lowers(anew.additive_mask.default)
def _additive_mask(low: Lowering, node: Node, mask: Value) -> Value:
    if _is_bool(node.args[0]):
        return low.op("mul", x=low.op("sub", x=mask, y=1.0), y=-MASKED)
    return low.op("maximum", x=mask, y=MASKED)


@lowers(anew.visible_rows.default)
def _visible_rows(low: Lowering, node: Node, mask: Value) -> Value:
    """What the engine holds is finite: of a float mask that it computed, every row is visible."""
    if _is_bool(node.args[0]):
        return low.op("reduce_max", x=mask, axes=[-1], keep_dims=True)
    return low.builder.array(np.ones(shape_of(node)), "visible")


def _is_bool(node: Any) -> bool:
    return bool(node.meta["val"].dtype == torch.bool)


@lowers(anew.causal_mask.default)
def _causal_mask(low: Lowering, node: Node, queries: int, keys: int) -> Value:
    return low.builder.array(np.triu(np.full((queries, keys), MASKED), 1), "mask")
