"""Axes added and taken away: expand_dims, squeeze, stack; and identity."""

from __future__ import annotations

import torch

from anew.mil.ops.registry import MilError, Param, axis_of, const, define, optional, shape_error, tensor
from anew.mil.types import TensorType


def _expand_type(x: TensorType, axes: tuple[int, ...]) -> TensorType:
    rank = x.rank + len(axes)
    added = {axis_of("expand_dims", a, rank) for a in axes}
    if len(added) != len(axes):
        raise shape_error("expand_dims", "an axis is named twice", x=x.shape, axes=axes)
    sizes = iter(x.shape)
    return TensorType(x.dtype, tuple(1 if i in added else next(sizes) for i in range(rank)))


define(
    "expand_dims",
    (tensor("x"), const("axes", "int32[]")),
    _expand_type,
    lambda x, axes: x.reshape(_expand_type(TensorType("fp16", tuple(x.shape)), tuple(axes)).shape),
    "move",
)


def _squeeze_type(x: TensorType, axes: tuple[int, ...] | None) -> TensorType:
    if axes is None:
        return TensorType(x.dtype, tuple(n for n in x.shape if n != 1))
    taken = {axis_of("squeeze", a, x.rank) for a in axes}
    if any(x.shape[a] != 1 for a in taken):
        raise shape_error("squeeze", "only axes of one element go", x=x.shape, axes=axes)
    return TensorType(x.dtype, tuple(n for i, n in enumerate(x.shape) if i not in taken))


define(
    "squeeze",
    (tensor("x"), optional("axes", "int32[]", None)),
    _squeeze_type,
    lambda x, axes: x.squeeze() if axes is None else x.squeeze(tuple(axes)),
    "move",
)


def _stack_type(values: tuple[TensorType, ...], axis: int) -> TensorType:
    first = values[0]
    if any(v != first for v in values):
        raise MilError(f"stack: the values differ ({', '.join(map(str, values))})")
    at = axis_of("stack", axis, first.rank + 1)
    return TensorType(first.dtype, (*first.shape[:at], len(values), *first.shape[at:]))


define(
    "stack",
    (Param("values", "tensors"), const("axis", "int32")),
    _stack_type,
    lambda values, axis: torch.stack(values, axis),
    "move",
)

define("identity", (tensor("x"),), lambda x: x, lambda x: x, "move")
