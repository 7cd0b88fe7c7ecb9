"""Quantization of activations: real numbers to 8-bit integers and back, by a scale and a zero point."""

from __future__ import annotations

import torch
from torch import Tensor

from anew.mil.ops.constexpr import along, check_along
from anew.mil.ops.registry import MilError, const, constant, define, optional, tensor
from anew.mil.types import TensorType, integer_range

_INTEGERS = ("int8", "uint8")


def _check(
    op: str, real: str, integer: str, x: TensorType, zero_point: TensorType | None, scale: TensorType, axis: int | None
) -> None:
    if integer not in _INTEGERS:
        raise MilError(f"{op}: the integers are {integer}; they must be one of {', '.join(_INTEGERS)}")
    if scale.dtype != real or real not in ("fp16", "fp32"):
        raise MilError(f"{op}: scale is {scale.dtype} and the real numbers {real}; both are fp16 or both fp32")
    if zero_point is not None and (zero_point.dtype != integer or zero_point.rank != scale.rank):
        raise MilError(f"{op}: zero_point {zero_point} is no {integer} of the shape of scale {scale}")
    if (scale.rank == 0) != (axis is None):
        raise MilError(f"{op}: a vector of scales needs 'axis', and a single scale has none")
    vectors = {"scale": scale} if zero_point is None else {"scale": scale, "zero_point": zero_point}
    check_along(op, x, axis, **vectors)


def _quantize_type(
    input: TensorType, zero_point: TensorType | None, scale: TensorType, axis: int | None, output_dtype: str
) -> TensorType:
    _check("quantize", input.dtype, output_dtype, input, zero_point, scale, axis)
    return TensorType(output_dtype, input.shape)


def _quantize(input: Tensor, zero_point: Tensor | None, scale: Tensor, axis: int | None, output_dtype: str) -> Tensor:
    codes = torch.round(input / along(scale, axis, input.dim()))
    if zero_point is not None:
        codes = codes + along(zero_point, axis, input.dim())
    return codes.clamp(*integer_range(output_dtype))


define(
    "quantize",
    (
        tensor("input"),
        constant("zero_point", required=False),
        constant("scale"),
        optional("axis", "int32", None),
        const("output_dtype", "string"),
    ),
    _quantize_type,
    _quantize,
    "elementwise",
)


def _dequantize_type(
    input: TensorType, zero_point: TensorType | None, scale: TensorType, axis: int | None
) -> TensorType:
    _check("dequantize", scale.dtype, input.dtype, input, zero_point, scale, axis)
    return TensorType(scale.dtype, input.shape)


def _dequantize(input: Tensor, zero_point: Tensor | None, scale: Tensor, axis: int | None) -> Tensor:
    shifted = input if zero_point is None else input - along(zero_point, axis, input.dim())
    return shifted * along(scale, axis, input.dim())


define(
    "dequantize",
    (
        tensor("input"),
        constant("zero_point", required=False),
        constant("scale"),
        optional("axis", "int32", None),
    ),
    _dequantize_type,
    _dequantize,
    "elementwise",
)
