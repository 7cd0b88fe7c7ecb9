"""Between fp32 tensors and leased fp16 buffers: scaled and rounded in one pass over memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from torch import Tensor

from anew.device.team import kernel


@intrinsic
def float_of_half(typing_context: Any, bits: Any) -> Any:
    """The float32 of an fp16 number given by its bits, an int16 (inside numba kernels only)."""
    return types.float32(types.int16), lambda context, builder, signature, args: builder.fpext(
        builder.bitcast(args[0], ir.HalfType()), ir.FloatType()
    )


@intrinsic
def _half_of_float(typing_context: Any, x: Any) -> Any:
    """The bits of a float32 rounded to fp16, to nearest, ties to even."""
    return types.int16(types.float32), lambda context, builder, signature, args: builder.bitcast(
        builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16)
    )


@kernel
def _store(buffer: np.ndarray, x: np.ndarray, factor: np.float32) -> None:
    for i in prange(len(x)):
        row, source = buffer[i], x[i]
        for j in range(source.size):
            row[j] = _half_of_float(source[j] * factor)


@kernel
def _load(buffer: np.ndarray, factor: np.float32, out: np.ndarray) -> None:
    for i in prange(len(out)):
        row, target = buffer[i], out[i]
        for j in range(target.size):
            target[j] = float_of_half(row[j]) * factor


def store(buffer: Tensor, x: Tensor, exponent: int) -> None:
    """Write ``x * 2**exponent``, float32 of the buffer's shape, into a leased fp16 buffer, rounded once."""
    rows = _rows(buffer)
    _store(rows, x.detach().float().contiguous().view(len(rows), -1).numpy(), np.float32(2.0**exponent))


def load(buffer: Tensor, exponent: int) -> Tensor:
    """Return ``buffer * 2**exponent`` of a leased fp16 buffer as a fresh contiguous float32 tensor."""
    rows = _rows(buffer)
    out = torch.empty(buffer.shape)
    _load(rows, np.float32(2.0**exponent), out.view(len(rows), -1).numpy())
    return out


def _rows(buffer: Tensor) -> np.ndarray:
    """The bits of a lease, rows at their whole pitch: int16 [rows, pitch], contiguous."""
    pitch = buffer.stride(-2) if buffer.dim() > 1 else buffer.numel()
    shape = (buffer.shape[:-1].numel(), pitch)
    return buffer.view(torch.int16).as_strided(shape, (pitch, 1)).numpy()
