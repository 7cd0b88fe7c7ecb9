"""Parts of a tensor: ``slice_by_index`` with strides and masks, and ``split`` into several results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from anew.mil.ops.registry import MilError, axis_of, const, define, optional, shape_error, tensor
from anew.mil.types import TensorType

_Mask = Sequence[bool] | None


def _ranges(
    shape: Sequence[int], begin: Sequence[int], end: Sequence[int], stride: Sequence[int] | None, *masks: _Mask
) -> Iterator[range]:
    """The positions that a slice takes of each axis; a masked begin or end is the edge of the tensor."""
    begin_mask, end_mask, squeeze_mask = (m if m is not None else [False] * len(shape) for m in masks)
    for i, n in enumerate(shape):
        step = 1 if stride is None else stride[i]
        start = None if begin_mask[i] else begin[i]
        if squeeze_mask[i]:
            index = 0 if start is None else start
            yield range(index % n, index % n + 1) if -n <= index < n else range(0)
        else:
            yield range(n)[slice(start, None if end_mask[i] else end[i], step)]


def _slice_type(
    x: TensorType,
    begin: Sequence[int],
    end: Sequence[int],
    stride: Sequence[int] | None,
    begin_mask: _Mask,
    end_mask: _Mask,
    squeeze_mask: _Mask,
) -> TensorType:
    lists = {"begin": begin, "end": end, "stride": stride}
    lists |= {"begin_mask": begin_mask, "end_mask": end_mask, "squeeze_mask": squeeze_mask}
    for name, entries in lists.items():
        if entries is not None and len(entries) != x.rank:
            raise shape_error("slice_by_index", f"{name} needs one entry an axis", x=x.shape, given=entries)
    if stride is not None and 0 in stride:
        raise shape_error("slice_by_index", "a stride is not 0", stride=stride)
    sizes = [len(r) for r in _ranges(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)]
    if 0 in sizes:
        raise shape_error("slice_by_index", "the slice is empty", x=x.shape, begin=begin, end=end)
    kept = [n for i, n in enumerate(sizes) if squeeze_mask is None or not squeeze_mask[i]]
    return TensorType(x.dtype, tuple(kept))


def _slice(
    x: Tensor,
    begin: Sequence[int],
    end: Sequence[int],
    stride: Sequence[int] | None,
    begin_mask: _Mask,
    end_mask: _Mask,
    squeeze_mask: _Mask,
) -> Tensor:
    ranges = list(_ranges(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask))
    for axis, positions in enumerate(ranges):
        low, high = sorted((positions[0], positions[-1]))
        x = x.narrow(axis, low, high - low + 1)
        if positions.step < 0:
            x = x.flip(axis)
        x = x[(slice(None),) * axis + (slice(None, None, abs(positions.step)),)]
    return x.squeeze([i for i in range(x.dim()) if squeeze_mask is not None and squeeze_mask[i]])


define(
    "slice_by_index",
    (
        tensor("x"),
        const("begin", "int32[]"),
        const("end", "int32[]"),
        optional("stride", "int32[]", None),
        optional("begin_mask", "bool[]", None),
        optional("end_mask", "bool[]", None),
        optional("squeeze_mask", "bool[]", None),
    ),
    _slice_type,
    _slice,
    "move",
)


def _sizes(n: int, num_splits: int | None, split_sizes: Sequence[int] | None) -> list[int]:
    """The sizes of the parts of an axis of ``n`` elements; raises MilError when they do not fill it."""
    if split_sizes is not None:
        sizes = list(split_sizes)
        if sum(sizes) != n or min(sizes, default=0) < 1 or num_splits not in (None, len(sizes)):
            raise shape_error("split", f"the parts do not fill an axis of {n}", split_sizes=sizes)
        return sizes
    if num_splits is None or num_splits < 1 or n % num_splits or n < 1:
        raise MilError(f"split: an axis of {n} has no {num_splits} equal parts")
    return [n // num_splits] * num_splits


def _split_type(
    x: TensorType, num_splits: int | None, split_sizes: Sequence[int] | None, axis: int
) -> tuple[TensorType, ...]:
    along = axis_of("split", axis, x.rank)
    sizes = _sizes(x.shape[along], num_splits, split_sizes)
    return tuple(TensorType(x.dtype, (*x.shape[:along], n, *x.shape[along + 1 :])) for n in sizes)


define(
    "split",
    (
        tensor("x"),
        optional("num_splits", "int32", None),
        optional("split_sizes", "int32[]", None),
        const("axis", "int32"),
    ),
    _split_type,
    lambda x, num_splits, split_sizes, axis: x.split(_sizes(x.shape[axis], num_splits, split_sizes), axis),
    "move",
)
