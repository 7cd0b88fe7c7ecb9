"""Constants that are stored compressed: quantized, as codes into a table, or sparse. Done when compiling.

Meanings take the tensors in the dtypes they are stored in (elements narrower than a byte one in a byte) and compute as
coremltools decompresses. Operations of iOS 16 stand with their parameters in brackets, those of iOS 18 with arguments;
``constexpr_lut_to_dense`` and ``constexpr_sparse_to_dense`` are both, and ``shape`` tells which.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anew.mil.blob import unpack_bits
from anew.mil.ops.registry import MilError, axis_of, const, constant, define, optional, shape_error
from anew.mil.types import ELEMENT_BITS, TensorType


def along(x: Tensor, axis: int | None, rank: int) -> Tensor:
    """Return a scalar, or a vector along ``axis``, as a tensor of ``rank`` axes that broadcasts."""
    shape = [1] * rank
    if x.dim():
        shape[axis or 0] = -1
    return x.reshape(shape)


def check_along(op: str, x: TensorType, axis: int | None, **vectors: TensorType) -> None:
    """Raise MilError unless each of ``vectors`` is a scalar or has one entry for each step of ``x`` along ``axis``."""
    for name, v in vectors.items():
        if v.rank > 1 or (v.rank == 1 and (axis is None or v.shape[0] != x.shape[axis_of(op, axis, x.rank)])):
            rule = f"{name} is neither a number nor one number a step of axis {axis}"
            raise shape_error(op, rule, data=x.shape, given=v.shape)


def _affine_type(quantized_data: TensorType, zero_point: TensorType, scale: TensorType, axis: int) -> TensorType:
    op = "constexpr_affine_dequantize"
    _check_element(op, "quantized_data", quantized_data, "int8", "uint8")
    _check_element(op, "zero_point", zero_point, "int8", "uint8", "fp32")
    _check_element(op, "scale", scale, "fp16", "fp32")
    axis_of(op, axis, quantized_data.rank)
    check_along(op, quantized_data, axis, zero_point=zero_point, scale=scale)
    return TensorType(scale.dtype, quantized_data.shape)


def _affine(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int) -> Tensor:
    wide = torch.promote_types(scale.dtype, torch.float32)
    rank = quantized_data.dim()
    shifted = quantized_data.to(wide) - along(zero_point.to(wide), axis, rank)
    return (shifted * along(scale, axis, rank)).to(scale.dtype)


define(
    "constexpr_affine_dequantize",
    (constant("quantized_data"), constant("zero_point"), constant("scale"), const("axis", "int32")),
    _affine_type,
    _affine,
    "constexpr",
    bracketed_by="quantized_data",
)


def _blockwise_type(data: TensorType, scale: TensorType, offset: TensorType | None) -> TensorType:
    op = "constexpr_blockwise_shift_scale"
    _check_element(op, "data", data, "int4", "uint4", "int8", "uint8", "fp16", "fp32")
    _check_element(op, "scale", scale, "fp16", "fp32")
    _check_blocks(op, "scale", data.shape, scale.shape)
    if data.rank == 0:
        raise shape_error(op, "data needs an axis", data=data.shape)
    if offset is not None:
        if offset.shape != scale.shape:
            raise shape_error(op, "offset and scale have the same shape", scale=scale.shape, offset=offset.shape)
        _check_element(op, "offset", offset, data.dtype, "fp16", "fp32")
    return TensorType(scale.dtype, data.shape)


def _blockwise(data: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    x = data.to(scale.dtype)
    if offset is not None:
        x = x - _spread(offset.to(scale.dtype), x.shape)
    return x * _spread(scale, x.shape)


def _spread(x: Tensor, shape: torch.Size) -> Tensor:
    """Repeat each entry over the block it stands for."""
    for axis, (n, blocks) in enumerate(zip(shape, x.shape, strict=True)):
        if 1 < blocks < n:  # a single block broadcasts
            x = x.repeat_interleave(n // blocks, axis)
    return x


define(
    "constexpr_blockwise_shift_scale",
    (constant("data"), constant("scale"), constant("offset", required=False)),
    _blockwise_type,
    _blockwise,
    "constexpr",
)


def _lut_type(
    indices: TensorType, lut: TensorType, shape: tuple[int, ...] | None, vector_axis: int | None
) -> TensorType:
    op = "constexpr_lut_to_dense"
    _check_element(op, "lut", lut, "int8", "uint8", "fp16", "fp32")
    if shape is not None:
        return _packed_lut_type(indices, lut, tuple(int(n) for n in shape))
    _check_element(op, "indices", indices, "uint1", "uint2", "uint3", "uint4", "uint6", "uint8")
    if indices.rank == 0 or lut.rank != indices.rank + 2:
        raise shape_error(op, "lut has two axes more than indices", indices=indices.shape, lut=lut.shape)
    entries, width = lut.shape[-2:]
    if entries != 2 ** ELEMENT_BITS[indices.dtype]:
        raise MilError(f"{op}: indices of {indices.dtype} need a lut of {2 ** ELEMENT_BITS[indices.dtype]} entries")
    _check_blocks(op, "lut", indices.shape, lut.shape[:-2])
    if vector_axis is None:
        if width != 1:
            raise shape_error(op, "entries of several numbers need 'vector_axis'", lut=lut.shape)
        return TensorType(lut.dtype, indices.shape)
    axis = axis_of(op, vector_axis, indices.rank)
    return TensorType(lut.dtype, tuple(n * width if i == axis else n for i, n in enumerate(indices.shape)))


def _packed_lut_type(indices: TensorType, lut: TensorType, shape: tuple[int, ...]) -> TensorType:
    op = "constexpr_lut_to_dense"
    _check_element(op, "indices", indices, "uint8")
    if indices.rank != 1 or lut.rank != 1 or lut.shape[0] not in (2, 4, 16, 64, 256):
        rule = "with 'shape', indices is a vector and lut one of 2, 4, 16, 64 or 256 entries"
        raise shape_error(op, rule, indices=indices.shape, lut=lut.shape)
    if indices.shape[0] != -(-_index_bits(lut.shape[0]) * math.prod(shape) // 8):
        raise shape_error(op, "indices has not the bytes of its packed codes", indices=indices.shape, shape=shape)
    return TensorType(lut.dtype, shape)


def _index_bits(entries: int) -> int:
    return entries.bit_length() - 1


def _lut(indices: Tensor, lut: Tensor, shape: tuple[int, ...] | None, vector_axis: int | None) -> Tensor:
    if shape is not None:
        sizes = tuple(int(n) for n in shape)
        codes = unpack_bits(indices.numpy(), _index_bits(lut.shape[0]), math.prod(sizes))
        return lut[torch.from_numpy(codes).long()].reshape(sizes)
    tables = torch.arange(math.prod(lut.shape[:-2])).reshape(lut.shape[:-2])  # which table an index looks into
    looked_up = lut.flatten(0, -3)[_spread(tables, indices.shape).expand(indices.shape), indices.long()]
    if vector_axis is None:
        return looked_up.squeeze(-1)
    axis = vector_axis % indices.dim()
    return looked_up.movedim(-1, axis + 1).flatten(axis, axis + 1)


define(
    "constexpr_lut_to_dense",
    (
        constant("indices"),
        constant("lut"),
        optional("shape", "uint32[]", None),
        optional("vector_axis", "int32", None),
    ),
    _lut_type,
    _lut,
    "constexpr",
    bracketed_by="shape",
)


def _sparse_type(nonzero_data: TensorType, mask: TensorType, shape: tuple[int, ...] | None) -> TensorType:
    op = "constexpr_sparse_to_dense"
    _check_element(op, "mask", mask, "uint1" if shape is None else "uint8")
    if nonzero_data.rank != 1:
        raise shape_error(op, "nonzero_data is a vector", nonzero_data=nonzero_data.shape)
    if shape is None:
        return TensorType(nonzero_data.dtype, mask.shape)
    sizes = tuple(int(n) for n in shape)
    if mask.shape != (-(-math.prod(sizes) // 8),):
        raise shape_error(op, "mask has not one bit an element", mask=mask.shape, shape=sizes)
    return TensorType(nonzero_data.dtype, sizes)


def _sparse(nonzero_data: Tensor, mask: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    if shape is not None:
        sizes = tuple(int(n) for n in shape)
        mask = torch.from_numpy(unpack_bits(mask.numpy(), 1, math.prod(sizes))).reshape(sizes)
    where = mask.bool()
    if int(where.sum()) != nonzero_data.numel():
        raise MilError(
            f"constexpr_sparse_to_dense: mask sets {int(where.sum())} elements, but {nonzero_data.numel()} are given"
        )
    dense = torch.zeros(mask.shape, dtype=nonzero_data.dtype)
    dense[where] = nonzero_data
    return dense


define(
    "constexpr_sparse_to_dense",
    (constant("nonzero_data"), constant("mask"), optional("shape", "uint32[]", None)),
    _sparse_type,
    _sparse,
    "constexpr",
    bracketed_by="shape",
)


def _cast_type(source_val: TensorType, output_dtype: str) -> TensorType:
    if (source_val.dtype, output_dtype) != ("fp16", "fp32"):
        raise MilError(f"constexpr_cast: only fp16 to fp32 exists, not {source_val.dtype} to {output_dtype}")
    return TensorType("fp32", source_val.shape)


define(
    "constexpr_cast",
    (constant("source_val"), const("output_dtype", "string")),
    _cast_type,
    lambda source_val, output_dtype: source_val.to(torch.float32),
    "constexpr",
    bracketed_by="source_val",
)


def _check_element(op: str, name: str, given: TensorType, *taken: str) -> None:
    if given.dtype not in taken:
        raise MilError(f"{op}: {name} is {given.dtype}; it takes {', '.join(dict.fromkeys(taken))}")


def _check_blocks(op: str, name: str, shape: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    """Raise MilError unless the entries of ``blocks`` divide those of ``shape``, axis by axis."""
    if len(blocks) != len(shape) or any(b < 1 or n % b for n, b in zip(shape, blocks, strict=True)):
        raise shape_error(op, f"{name} does not divide the data into equal blocks", data=shape, blocks=blocks)
