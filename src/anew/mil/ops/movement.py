"""Data movement: reshape, transpose, slices, concat, tile, pad. Exact on the engine but for named slice rules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from anew.mil.ops.registry import MilError, Param, axis_of, const, define, shape_error, tensor
from anew.mil.types import TensorType


def _reshape_type(x: TensorType, shape: tuple[int, ...]) -> TensorType:
    out = list(shape)
    if out.count(-1) > 1 or min(out, default=1) < -1:
        raise MilError(f"reshape: at most one axis may be -1 and none less (got {out})")
    if -1 in out:
        known = -math.prod(out)
        out[out.index(-1)] = x.numel // known if known else 0
    if math.prod(out) != x.numel:
        raise shape_error("reshape", "element counts differ", x=x.shape, shape=shape)
    return TensorType(x.dtype, tuple(out))


define(
    "reshape",
    (tensor("x"), const("shape", "int32[]")),
    _reshape_type,
    lambda x, shape: x.reshape(tuple(shape)),
    "move",
)


def _transpose_type(x: TensorType, perm: tuple[int, ...]) -> TensorType:
    order = [axis_of("transpose", p, x.rank) for p in perm]
    if sorted(order) != list(range(x.rank)):
        raise shape_error("transpose", "perm is not a permutation of the axes", x=x.shape, perm=perm)
    return TensorType(x.dtype, tuple(x.shape[p] for p in order))


define(
    "transpose",
    (tensor("x"), const("perm", "int32[]")),
    _transpose_type,
    lambda x, perm: x.permute(tuple(perm)),
    "move",
)


def _slice_type(x: TensorType, begin: tuple[int, ...], size: tuple[int, ...]) -> TensorType:
    if len(begin) != x.rank or len(size) != x.rank:
        raise shape_error("slice_by_size", "begin and size need one entry an axis", x=x.shape, begin=begin, size=size)
    out = tuple(n - b if s == -1 else s for n, b, s in zip(x.shape, begin, size, strict=True))
    if any(b < 0 or s < 1 or b + s > n for n, b, s in zip(x.shape, begin, out, strict=True)):
        raise shape_error("slice_by_size", "the slice leaves the tensor", x=x.shape, begin=begin, size=size)
    return TensorType(x.dtype, out)


def _slice(x: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
    spans = (slice(b, n if s == -1 else b + s) for n, b, s in zip(x.shape, begin, size, strict=True))
    return x[tuple(spans)]


define(
    "slice_by_size",
    (tensor("x"), const("begin", "int32[]"), const("size", "int32[]")),
    _slice_type,
    _slice,
    "move",
)


def _concat_type(values: tuple[TensorType, ...], axis: int, interleave: bool) -> TensorType:
    first = values[0]
    along = axis_of("concat", axis, first.rank)
    for v in values[1:]:
        same = v.rank == first.rank and all(
            a == b for i, (a, b) in enumerate(zip(v.shape, first.shape, strict=True)) if i != along
        )
        if not same:
            raise shape_error("concat", f"shapes differ off axis {axis}", first=first.shape, other=v.shape)
    if any(v.dtype != first.dtype for v in values):
        raise MilError(f"concat: the values have different types ({', '.join(v.dtype for v in values)}); cast them")
    if interleave and any(v.shape != first.shape for v in values):
        raise shape_error("concat", "interleaved values have one shape", first=first.shape, last=values[-1].shape)
    total = sum(v.shape[along] for v in values)
    return TensorType(first.dtype, (*first.shape[:along], total, *first.shape[along + 1 :]))


def _concat(values: Sequence[Tensor], axis: int, interleave: bool) -> Tensor:
    if not interleave:
        return torch.cat(list(values), axis)
    along = axis % values[0].dim()
    return torch.stack(list(values), along + 1).flatten(along, along + 1)


define(
    "concat",
    (Param("values", "tensors"), const("axis", "int32"), const("interleave", "bool")),
    _concat_type,
    _concat,
    "move",
)


def _tile_type(x: TensorType, reps: tuple[int, ...]) -> TensorType:
    if len(reps) != x.rank or min(reps, default=1) < 1:
        raise shape_error("tile", "reps needs one positive entry an axis", x=x.shape, reps=reps)
    return TensorType(x.dtype, tuple(n * r for n, r in zip(x.shape, reps, strict=True)))


define("tile", (tensor("x"), const("reps", "int32[]")), _tile_type, lambda x, reps: x.repeat(tuple(reps)), "move")


def _pad_type(x: TensorType, pad: tuple[int, ...], mode: str, constant_val: float) -> TensorType:
    if len(pad) != 2 * x.rank or min(pad, default=0) < 0:
        raise shape_error("pad", "pad needs two entries an axis, none negative", x=x.shape, pad=pad)
    if mode != "constant":
        raise MilError(f"pad: mode '{mode}' is not supported by anew, only 'constant'")
    return TensorType(x.dtype, tuple(n + pad[2 * i] + pad[2 * i + 1] for i, n in enumerate(x.shape)))


def _pad(x: Tensor, pad: Sequence[int], mode: str, constant_val: float) -> Tensor:
    pairs = [pad[i : i + 2] for i in range(0, len(pad), 2)]
    return F.pad(x, [n for pair in reversed(pairs) for n in pair], value=constant_val)


define(
    "pad",
    (tensor("x"), const("pad", "int32[]"), const("mode", "string"), const("constant_val", "fp16")),
    _pad_type,
    _pad,
    "move",
)


def _reverse_type(x: TensorType, axes: tuple[int, ...]) -> TensorType:
    for axis in axes:
        axis_of("reverse", axis, x.rank)
    return x


define("reverse", (tensor("x"), const("axes", "int32[]")), _reverse_type, lambda x, axes: x.flip(tuple(axes)), "move")
