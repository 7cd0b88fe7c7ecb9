"""Reductions over axes, and softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anew.mil.ops.registry import axis_of, const, define, shape_error, tensor
from anew.mil.types import TensorType


def _reduction(name: str, meaning: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> None:
    def infer(x: TensorType, axes: tuple[int, ...], keep_dims: bool) -> TensorType:
        reduced = {axis_of(name, a, x.rank) for a in axes}
        if len(reduced) != len(axes):
            raise shape_error(name, "an axis is named twice", x=x.shape, axes=axes)
        kept = [1 if i in reduced else n for i, n in enumerate(x.shape) if keep_dims or i not in reduced]
        return TensorType(x.dtype, tuple(kept))

    def flops(result: TensorType, x: TensorType, **_: Any) -> int:
        return x.numel

    params = (tensor("x"), const("axes", "int32[]"), const("keep_dims", "bool"))
    define(name, params, infer, lambda x, axes, keep_dims: meaning(x, tuple(axes), keep_dims), "reduce", flops)


_reduction("reduce_sum", lambda x, axes, keep: torch.sum(x, axes, keep))
_reduction("reduce_mean", lambda x, axes, keep: torch.mean(x, axes, keep))
_reduction("reduce_max", lambda x, axes, keep: torch.amax(x, axes, keep))
_reduction("reduce_min", lambda x, axes, keep: torch.amin(x, axes, keep))
_reduction("reduce_l1_norm", lambda x, axes, keep: torch.sum(x.abs(), axes, keep))
_reduction("reduce_l2_norm", lambda x, axes, keep: torch.sqrt(torch.sum(x.square(), axes, keep)))
_reduction("reduce_sum_square", lambda x, axes, keep: torch.sum(x.square(), axes, keep))
_reduction("reduce_log_sum", lambda x, axes, keep: torch.log(torch.sum(x, axes, keep)))
_reduction("reduce_log_sum_exp", lambda x, axes, keep: torch.logsumexp(x, axes, keep))


def _softmax_type(x: TensorType, axis: int) -> TensorType:
    axis_of("softmax", axis, x.rank)
    return x


define(
    "softmax",
    (tensor("x"), const("axis", "int32")),
    _softmax_type,
    lambda x, axis: torch.softmax(x, axis),
    "lookup",
    lambda result, **_: 4 * result.numel,  # subtract the maximum, exp, sum, divide
)
