"""The operations of the multiply-accumulate array: matmul and conv."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anew.mil.ops.registry import MilError, broadcast, const, constant, define, shape_error, tensor
from anew.mil.types import TensorType


def _same_dtype(op: str, x: TensorType, other: TensorType) -> None:
    if x.dtype != other.dtype:
        raise MilError(f"{op}: the operands are {x.dtype} and {other.dtype}; cast one of them")


def _flip(x: tuple[int, ...], transpose: bool) -> tuple[int, ...]:
    return (*x[:-2], x[-1], x[-2]) if transpose else x


def _matmul_type(x: TensorType, y: TensorType, transpose_x: bool, transpose_y: bool) -> TensorType:
    _same_dtype("matmul", x, y)
    if x.rank < 2 or y.rank < 2:
        raise shape_error("matmul", "operands need at least two axes", x=x.shape, y=y.shape)
    a, b = _flip(x.shape, transpose_x), _flip(y.shape, transpose_y)
    if a[-1] != b[-2]:
        raise shape_error("matmul", "contraction axes differ", x=a, y=b)
    return TensorType(x.dtype, (*broadcast("matmul", a[:-2], b[:-2]), a[-2], b[-1]))


def matmul_operands(x: Tensor, y: Tensor, transpose_x: bool, transpose_y: bool) -> tuple[Tensor, Tensor]:
    """Return the operands as views [..., M, K] and [..., K, N]."""
    return (x.mT if transpose_x else x), (y.mT if transpose_y else y)


def _matmul(x: Tensor, y: Tensor, transpose_x: bool, transpose_y: bool) -> Tensor:
    return torch.matmul(*matmul_operands(x, y, transpose_x, transpose_y))


def _matmul_flops(result: TensorType, x: TensorType, transpose_x: bool, **_: Any) -> int:
    return 2 * result.numel * _flip(x.shape, transpose_x)[-1]


define(
    "matmul",
    (tensor("x"), tensor("y"), const("transpose_x", "bool"), const("transpose_y", "bool")),
    _matmul_type,
    _matmul,
    "mac",
    _matmul_flops,
)


def conv_padding(
    pad_type: str,
    pad: tuple[int, ...],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    size: tuple[int, int],
) -> tuple[int, int, int, int]:
    """Return the padding (top, bottom, left, right) that a ``pad_type`` of ``valid``, ``same`` or ``custom`` means."""
    if pad_type == "custom":
        top, bottom, left, right = pad
        return top, bottom, left, right
    if pad_type == "valid":
        return 0, 0, 0, 0
    if pad_type != "same":
        raise MilError(f"conv: pad_type '{pad_type}' is none of valid, same, custom")
    sides: list[int] = []
    for k, s, d, n in zip(kernel, strides, dilations, size, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        sides += [total // 2, total - total // 2]
    return sides[0], sides[1], sides[2], sides[3]


def _conv_type(
    x: TensorType,
    weight: TensorType,
    bias: TensorType | None,
    strides: tuple[int, int],
    pad_type: str,
    pad: tuple[int, ...],
    dilations: tuple[int, int],
    groups: int,
) -> TensorType:
    _same_dtype("conv", x, weight)
    if x.rank != 4 or weight.rank != 4:
        raise shape_error("conv", "anew takes two spatial axes", x=x.shape, weight=weight.shape)
    if (len(strides), len(pad), len(dilations)) != (2, 4, 2) or min(*strides, *dilations, groups) < 1 or min(pad) < 0:
        rule = "strides and dilations need two positive entries, pad four that are not negative, groups at least 1"
        raise shape_error("conv", rule, strides=strides, pad=pad, dilations=dilations, groups=(groups,))
    if x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise shape_error("conv", f"channels do not fit {groups} groups", x=x.shape, weight=weight.shape)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise shape_error("conv", "bias has one number an output channel", weight=weight.shape, bias=bias.shape)
    kernel = (weight.shape[2], weight.shape[3])
    p = conv_padding(pad_type, pad, kernel, strides, dilations, (x.shape[2], x.shape[3]))
    out = [
        (n + lo + hi - d * (k - 1) - 1) // s + 1
        for n, lo, hi, k, s, d in zip(x.shape[2:], p[::2], p[1::2], kernel, strides, dilations, strict=True)
    ]
    if min(out) < 1:
        raise shape_error("conv", "the kernel is larger than the padded input", x=x.shape, weight=weight.shape)
    return TensorType(x.dtype, (x.shape[0], weight.shape[0], *out))


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: tuple[int, int],
    pad_type: str,
    pad: tuple[int, ...],
    dilations: tuple[int, int],
    groups: int,
) -> Tensor:
    kernel = (weight.shape[2], weight.shape[3])
    top, bottom, left, right = conv_padding(pad_type, pad, kernel, strides, dilations, (x.shape[2], x.shape[3]))
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, strides, 0, dilations, groups)


def _conv_flops(result: TensorType, weight: TensorType, bias: TensorType | None, **_: Any) -> int:
    return 2 * result.numel * weight.numel // weight.shape[0] + (result.numel if bias is not None else 0)


define(
    "conv",
    (
        tensor("x"),
        tensor("weight"),
        constant("bias", required=False),
        const("strides", "int32[]"),
        const("pad_type", "string"),
        const("pad", "int32[]"),
        const("dilations", "int32[]"),
        const("groups", "int32"),
    ),
    _conv_type,
    _conv,
    "mac",
    _conv_flops,
)
