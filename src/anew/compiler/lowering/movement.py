"""Lowering of views, transposes, slices and concatenation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.fx import Node

from anew.compiler.lowering.table import Lowering, NotLowered, lowers, shape_of
from anew.mil import Value

aten = torch.ops.aten


@lowers(
    aten.view.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
)
def _view(low: Lowering, node: Node, x: Value, *_: object) -> Value:
    return low.reshape(x, shape_of(node))


@lowers(aten.t.default)
def _t(low: Lowering, node: Node, x: Value) -> Value:
    return x if x.type.rank < 2 else low.transpose(x, (1, 0))


@lowers(aten.transpose.int)
def _transpose(low: Lowering, node: Node, x: Value, first: int, second: int) -> Value:
    perm = list(range(x.type.rank))
    perm[first], perm[second] = perm[second], perm[first]
    return low.transpose(x, perm)


@lowers(aten.permute.default)
def _permute(low: Lowering, node: Node, x: Value, dims: Sequence[int]) -> Value:
    return low.transpose(x, [d % x.type.rank for d in dims])


@lowers(aten.expand.default)
def _expand(low: Lowering, node: Node, x: Value, size: Sequence[int], implicit: bool = False) -> Value:
    shape = shape_of(node)
    x = low.reshape(x, (1,) * (len(shape) - x.type.rank) + x.shape)
    for axis, n in enumerate(shape):
        if n != x.shape[axis]:
            x = _repeat(low, x, axis, n)
    return x


def _repeat(low: Lowering, x: Value, axis: int, n: int) -> Value:
    """Repeat an axis of one element: the engine's tile takes few factors, a product with ones takes any."""
    along = [1] * x.type.rank
    along[axis] = n
    if n in low.chip.tile_factors:
        return low.op("tile", x=x, reps=along)
    return low.op("mul", x=x, y=low.builder.array(np.ones(along), hint="ones"))


def _span(x: Value, dim: int, start: int | None, end: int | None, step: int) -> tuple[int, int, int]:
    if step != 1:
        raise NotLowered(f"a slice with step {step}; the engine takes contiguous slices")
    dim %= x.type.rank
    extent = x.shape[dim]
    begin, stop, _ = slice(start, end).indices(extent)
    return dim, begin, stop


@lowers(aten.slice.Tensor)
def _slice(
    low: Lowering, node: Node, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    dim, begin, stop = _span(x, dim, start, end, step)
    if (begin, stop) == (0, x.shape[dim]):
        return x
    at = [begin if i == dim else 0 for i in range(x.type.rank)]
    return low.op("slice_by_size", x=x, begin=at, size=shape_of(node))


@lowers(aten.slice_backward.default)
def _slice_backward(
    low: Lowering, node: Node, grad: Value, sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> Value:
    if step != 1:
        raise NotLowered(f"the gradient of a slice with step {step}; the engine takes contiguous slices")
    dim %= len(sizes)
    begin, stop, _ = slice(start, end).indices(sizes[dim])
    pad = [0] * (2 * len(sizes))
    pad[2 * dim : 2 * dim + 2] = [begin, sizes[dim] - stop]
    return low.op("pad", x=grad, pad=pad, mode="constant", constant_val=0.0)


@lowers(aten.cat.default)
def _cat(low: Lowering, node: Node, values: Sequence[Value], dim: int = 0) -> Value:
    return low.op("concat", values=tuple(values), axis=dim % values[0].type.rank, interleave=False)
