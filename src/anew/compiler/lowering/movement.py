"""Lowering of views, transposes, slices and concatenation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

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
def _expand(low: Lowering, node: Node, x: Value | float, size: Sequence[int], implicit: bool = False) -> Value:
    shape = shape_of(node)
    return low.expand(x, shape) if isinstance(x, Value) else low.full(shape, x)


@lowers(aten.repeat.default)
def _repeat(low: Lowering, node: Node, x: Value, repeats: Sequence[int]) -> Value:
    x = low.reshape(x, (1,) * (len(repeats) - x.type.rank) + x.shape)
    for axis, times in enumerate(repeats):
        if times > 1:
            x = low.op("concat", values=(x,) * times, axis=axis, interleave=False)
    return x


def _bounds(extent: int, start: int | None, end: int | None, step: int) -> tuple[int, int]:
    if step != 1:
        raise NotLowered(f"a slice with step {step}; the engine takes contiguous slices")
    begin, stop, _ = slice(start, end).indices(extent)
    return begin, stop


@lowers(aten.slice.Tensor)
def _slice(
    low: Lowering, node: Node, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    dim %= x.type.rank
    return low.span(x, dim, *_bounds(x.shape[dim], start, end, step))


@lowers(aten.slice_backward.default)
def _slice_backward(
    low: Lowering, node: Node, grad: Value, sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> Value:
    dim %= len(sizes)
    begin, _ = _bounds(sizes[dim], start, end, step)
    return low.span(grad, dim, -begin, sizes[dim] - begin)


@lowers(aten.slice_scatter.default)
def _slice_scatter(
    low: Lowering,
    node: Node,
    x: Value,
    source: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value:
    dim %= x.type.rank
    return _overwritten(low, x, source, dim, *_bounds(x.shape[dim], start, end, step))


def _overwritten(low: Lowering, x: Value, source: Value, axis: int, begin: int, end: int) -> Value:
    """``x`` with the positions ``begin`` to ``end`` of an axis taken from ``source``."""
    spans = [(0, begin), (end, x.shape[axis])]
    before, after = ([low.span(x, axis, *span)] if span[0] < span[1] else [] for span in spans)
    return _concat(low, [*before, source, *after], axis)


def _concat(low: Lowering, values: Sequence[Value], axis: int) -> Value:
    return values[0] if len(values) == 1 else low.op("concat", values=tuple(values), axis=axis, interleave=False)


@lowers(aten.select.int)
def _select(low: Lowering, node: Node, x: Value, dim: int, index: int) -> Value:
    dim %= x.type.rank
    index %= x.shape[dim]
    return low.reshape(low.span(x, dim, index, index + 1), shape_of(node))


@lowers(aten.select_backward.default)
def _select_backward(low: Lowering, node: Node, grad: Value, sizes: Sequence[int], dim: int, index: int) -> Value:
    dim %= len(sizes)
    index %= sizes[dim]
    row = low.reshape(grad, [1 if i == dim else n for i, n in enumerate(sizes)])
    return low.span(row, dim, -index, sizes[dim] - index)


@lowers(aten.select_scatter.default)
def _select_scatter(low: Lowering, node: Node, x: Value, source: Value, dim: int, index: int) -> Value:
    dim %= x.type.rank
    index %= x.shape[dim]
    row = low.reshape(source, [1 if i == dim else n for i, n in enumerate(x.shape)])
    return _overwritten(low, x, row, dim, index, index + 1)


@lowers(aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int)
def _split(low: Lowering, node: Node, x: Value, *args: Any) -> tuple[Value, ...]:
    pieces = [tuple(v.shape) for v in node.meta["val"]]
    unbinds = node.target is aten.unbind.int
    dim = (args[0] if unbinds and args else args[1] if len(args) > 1 else 0) % x.type.rank
    begins = [0, *itertools.accumulate(1 if unbinds else piece[dim] for piece in pieces)]
    return tuple(
        low.reshape(low.span(x, dim, *span), piece)
        for span, piece in zip(itertools.pairwise(begins), pieces, strict=True)
    )


@lowers(aten.stack.default)
def _stack(low: Lowering, node: Node, values: Sequence[Value], dim: int = 0) -> Value:
    shape = shape_of(node)
    dim %= len(shape)
    return _concat(low, [low.reshape(v, (*shape[:dim], 1, *shape[dim + 1 :])) for v in values], dim)


@lowers(aten.roll.default)
def _roll(low: Lowering, node: Node, x: Value, shifts: Sequence[int], dims: Sequence[int] = ()) -> Value:
    shape = x.shape
    if not dims:
        x = low.reshape(x, (x.type.numel,))
    for shift, dim in zip(shifts, dims or [0], strict=True):
        length = x.shape[dim]
        cut = -shift % length
        if cut:
            x = _concat(low, [low.span(x, dim % x.type.rank, *span) for span in ((cut, length), (0, cut))], dim)
    return low.reshape(x, shape)


@lowers(aten.flip.default)
def _flip(low: Lowering, node: Node, x: Value, dims: Sequence[int]) -> Value:
    return low.op("reverse", x=x, axes=[d % x.type.rank for d in dims])


@lowers(aten.constant_pad_nd.default)
def _pad(low: Lowering, node: Node, x: Value, pad: Sequence[int], number: float = 0.0) -> Value:
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        axis = x.type.rank - 1 - i
        x = low.span(x, axis, -before, x.shape[axis] + after, number)
    return x


@lowers(aten.triu.default, aten.tril.default)
def _triangle(low: Lowering, node: Node, x: Value, diagonal: int = 0) -> Value:
    cut = np.triu if node.target is aten.triu.default else np.tril
    return low.op("mul", x=x, y=low.builder.array(cut(np.ones(x.shape[-2:]), diagonal), "triangle"))


@lowers(aten.copy.default)
def _copy(low: Lowering, node: Node, x: Value, source: Value, non_blocking: bool = False) -> Value:
    return low.expand(source, x.shape)


@lowers(aten.full.default, aten.full_like.default, aten.new_full.default, aten.fill.Scalar)
def _full(low: Lowering, node: Node, *args: Any, **layout: Any) -> Value:
    return low.full(shape_of(node), args[-1])


@lowers(
    aten.zeros.default,
    aten.zeros_like.default,
    aten.new_zeros.default,
    aten.empty_like.default,
)
def _zeros(low: Lowering, node: Node, *args: Any, **layout: Any) -> Value:
    return low.full(shape_of(node), 0.0)


@lowers(aten.ones.default, aten.ones_like.default, aten.new_ones.default)
def _ones(low: Lowering, node: Node, *args: Any, **layout: Any) -> Value:
    return low.full(shape_of(node), 1.0)


@lowers(aten.cat.default)
def _cat(low: Lowering, node: Node, values: Sequence[Value], dim: int = 0) -> Value:
    return _concat(low, values, dim % values[0].type.rank)
