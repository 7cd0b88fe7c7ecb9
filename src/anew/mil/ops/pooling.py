"""Pooling over windows of the two spatial axes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from anew.mil.ops.matmul import conv_padding
from anew.mil.ops.registry import const, define, shape_error, tensor
from anew.mil.types import TensorType


def _max_pool_type(
    x: TensorType,
    kernel_sizes: tuple[int, int],
    strides: tuple[int, int],
    pad_type: str,
    pad: tuple[int, ...],
    ceil_mode: bool,
) -> TensorType:
    if x.rank != 4:
        raise shape_error("max_pool", "anew takes two spatial axes", x=x.shape)
    if (len(kernel_sizes), len(strides), len(pad)) != (2, 2, 4) or min(*kernel_sizes, *strides) < 1 or min(pad) < 0:
        rule = "kernel sizes and strides need two positive entries, pad four that are not negative"
        raise shape_error("max_pool", rule, kernel_sizes=kernel_sizes, strides=strides, pad=pad)
    if ceil_mode:
        raise shape_error("max_pool", "anew takes no ceil_mode; pad the last rows instead", x=x.shape)
    top, bottom, left, right = conv_padding(pad_type, pad, kernel_sizes, strides, (1, 1), (x.shape[2], x.shape[3]))
    padded = x.shape[2] + top + bottom, x.shape[3] + left + right
    out = [(n - k) // s + 1 for n, k, s in zip(padded, kernel_sizes, strides, strict=True)]
    if min(out) < 1:
        raise shape_error("max_pool", "the window is larger than the padded input", x=x.shape, window=kernel_sizes)
    return TensorType(x.dtype, (*x.shape[:2], *out))


def _max_pool(
    x: Tensor,
    kernel_sizes: tuple[int, int],
    strides: tuple[int, int],
    pad_type: str,
    pad: tuple[int, ...],
    ceil_mode: bool,
) -> Tensor:
    size = (x.shape[2], x.shape[3])
    top, bottom, left, right = conv_padding(pad_type, pad, kernel_sizes, strides, (1, 1), size)
    return F.max_pool2d(F.pad(x, (left, right, top, bottom), value=-torch.inf), kernel_sizes, strides)


define(
    "max_pool",
    (
        tensor("x"),
        const("kernel_sizes", "int32[]"),
        const("strides", "int32[]"),
        const("pad_type", "string"),
        const("pad", "int32[]"),
        const("ceil_mode", "bool"),
    ),
    _max_pool_type,
    _max_pool,
    "reduce",
    lambda result, kernel_sizes, **_: result.numel * kernel_sizes[0] * kernel_sizes[1],
)
