"""Between fp32 tensors and leased fp16 buffers: scaled and rounded in one pass over memory."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from torch import Tensor

from anew.device.team import COMPILED, kernel

INF_BITS = 0x7F800000


@intrinsic
def float_of_half(typing_context: Any, bits: Any) -> Any:
    """The float32 of an fp16 number given by its bits, an int16 (inside numba kernels only)."""
    return types.float32(types.int16), lambda context, builder, signature, args: builder.fpext(
        builder.bitcast(args[0], ir.HalfType()), ir.FloatType()
    )


@intrinsic
def half_of_float(typing_context: Any, x: Any) -> Any:
    """The bits of a float32 rounded to fp16, to nearest, ties to even."""
    return types.int16(types.float32), lambda context, builder, signature, args: builder.bitcast(
        builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16)
    )


@intrinsic
def magnitude_bits(typing_context: Any, x: Any) -> Any:
    """The bits of a float32's magnitude, which order as the magnitudes do; NaN is above infinity."""
    return types.int32(types.float32), lambda context, builder, signature, args: builder.and_(
        builder.bitcast(args[0], ir.IntType(32)), ir.IntType(32)(0x7FFFFFFF)
    )


@kernel
def _store(buffer: np.ndarray, x: np.ndarray, factor: np.float32) -> np.int32:
    largest = np.int32(0)
    for i in prange(len(x)):
        row, source = buffer[i], x[i]
        top = np.int32(0)
        for j in range(source.size):
            top = max(top, magnitude_bits(source[j]))
            row[j] = half_of_float(source[j] * factor)
        largest = max(largest, top)
    return largest


@kernel
def _load(buffer: np.ndarray, factor: np.float32, out: np.ndarray) -> np.int32:
    largest = np.int32(0)
    for i in prange(len(out)):
        row, target = buffer[i], out[i]
        top = np.int32(0)
        for j in range(target.size):
            x = float_of_half(row[j])
            top = max(top, magnitude_bits(x))
            target[j] = x * factor
        largest = max(largest, top)
    return largest


@numba.njit(fastmath={"reassoc", "nsz"}, **COMPILED)
def _measure_row(row: np.ndarray, width: int) -> tuple[np.int32, float]:
    """Largest magnitude, as bits, and sum of squares, which vector registers add in an order of their own."""
    top, total = np.int32(0), 0.0
    for j in range(width):
        x = float_of_half(row[j])
        top = max(top, magnitude_bits(x))
        total += np.float64(x * x)  # float32 holds the square
    return top, total


@kernel
def _measure(buffer: np.ndarray, width: int, squares: np.ndarray) -> np.int32:
    largest = np.int32(0)
    for i in prange(len(squares)):
        top, squares[i] = _measure_row(buffer[i], width)
        largest = max(largest, top)
    return largest


def store(buffer: Tensor, x: Tensor, exponent: int) -> float:
    """Write ``x * 2**exponent``, float32 of the buffer's shape, into a leased fp16 buffer, rounded once.

    Returns the largest magnitude of ``x``; inf if one of its elements is infinite or NaN.
    """
    rows = as_rows(buffer)
    largest = _store(rows, x.detach().float().contiguous().view(len(rows), -1).numpy(), np.float32(2.0**exponent))
    return float_of_largest(largest)


def load(buffer: Tensor, exponent: int) -> tuple[Tensor, float]:
    """Return ``buffer * 2**exponent`` of a leased fp16 buffer as a fresh contiguous float32 tensor.

    With it comes the largest magnitude in the buffer; inf if one of its elements is infinite or NaN.
    """
    rows = as_rows(buffer)
    out = torch.empty(buffer.shape)
    return out, float_of_largest(_load(rows, np.float32(2.0**exponent), out.view(len(rows), -1).numpy()))


def measure(buffer: Tensor) -> tuple[float, float]:
    """Return the largest magnitude in a leased fp16 buffer, and the sum of its squares added in float64.

    Both are of the numbers as they lie there, without exponents. The first is inf if an element is infinite or NaN;
    the second then is no number to use. One pass, whose sums are the same on any number of threads.
    """
    rows = as_rows(buffer)
    squares = np.empty(len(rows))
    width = buffer.shape[-1] if buffer.dim() else 1
    largest = _measure(rows, width, squares)
    return float_of_largest(largest), float(squares.sum())


def as_rows(buffer: Tensor) -> np.ndarray:
    """The bits of a lease, rows at their whole pitch: int16 [rows, pitch], contiguous."""
    pitch = buffer.stride(-2) if buffer.dim() > 1 else buffer.numel()
    shape = (buffer.shape[:-1].numel(), pitch)
    return buffer.view(torch.int16).as_strided(shape, (pitch, 1)).numpy()


def float_of_largest(bits: np.int32) -> float:
    """Return the largest of magnitudes, given as float32 bits; inf if it is infinite or NaN."""
    return math.inf if bits >= INF_BITS else float(np.int32(bits).view(np.float32))
