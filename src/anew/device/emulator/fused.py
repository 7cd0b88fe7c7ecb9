"""Kernels that do in one pass over memory what the engine's rules would take several: compute, round, find the maximum.

Each gives bit for bit what the separate functions of :mod:`rounding` give; on the host the passes are what costs.
numba's cache of this file does not notice edits to ``rounding.py``; remove ``__pycache__`` after such an edit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np
import torch
from numba import prange
from torch import Tensor

from anew.device.base import INFINITE_PRODUCT
from anew.device.emulator.rounding import (
    absmax,
    elementwise_rule,
    flat,
    matmul_rule,
)
from anew.device.team import kernel
from anew.device.transfer import INF_BITS, float_of_largest, magnitude_bits

FP16_MAX = 65504.0
_INFINITE = np.float32(INFINITE_PRODUCT)


@numba.njit(inline="always")
def times(x: np.float32, y: np.float32) -> np.float32:
    """The engine's product of two fp16 numbers; infinity times zero is zero (inside numba kernels only).

    `INFINITE_PRODUCT` was published for an infinity times an unnamed x: taken for a positive x, and for a negative
    one the sign is turned.
    """
    product = x * y
    infinite = -_INFINITE if product < 0.0 else _INFINITE
    finite = max(magnitude_bits(x), magnitude_bits(y)) < INF_BITS
    return elementwise_rule(product if finite or product != product else infinite)


@kernel
def _scale(x: np.ndarray, factor: np.float32, out: np.ndarray) -> np.int32:
    largest = np.int32(0)
    for i in prange(x.size):
        largest = max(largest, magnitude_bits(x[i]))
        out[i] = times(x[i], factor)
    return largest


@kernel
def _finish(x: np.ndarray, carried: np.float32) -> np.int32:
    largest = np.int32(0)
    for i in prange(x.size):
        product = matmul_rule(x[i] * carried)
        largest = max(largest, magnitude_bits(product))
        x[i] = product
    return largest


@kernel
def _finish_scale(x: np.ndarray, carried: np.float32, factor: np.float32) -> np.int32:
    largest = np.int32(0)
    for i in prange(x.size):
        product = matmul_rule(x[i] * carried)
        largest = max(largest, magnitude_bits(product))
        x[i] = times(product, factor)
    return largest


@kernel
def _add(x: np.ndarray, y: np.ndarray, repeat: int, out: np.ndarray) -> None:
    for i in prange(len(x)):
        left, right, result = x[i], y[np.int64(i) // repeat % len(y)], out[i]
        if right.size == 1:
            for j in range(left.size):
                result[j] = elementwise_rule(left[j] + right[0])
        else:
            for j in range(left.size):
                result[j] = elementwise_rule(left[j] + right[j])


@kernel
def _sub(x: np.ndarray, y: np.ndarray, repeat: int, out: np.ndarray) -> None:
    for i in prange(len(x)):
        left, right, result = x[i], y[np.int64(i) // repeat % len(y)], out[i]
        if right.size == 1:
            for j in range(left.size):
                result[j] = elementwise_rule(left[j] - right[0])
        else:
            for j in range(left.size):
                result[j] = elementwise_rule(left[j] - right[j])


@kernel
def _mul(x: np.ndarray, y: np.ndarray, repeat: int, out: np.ndarray) -> None:
    for i in prange(len(x)):
        left, right, result = x[i], y[np.int64(i) // repeat % len(y)], out[i]
        if right.size == 1:
            for j in range(left.size):
                result[j] = times(left[j], right[0])
        else:
            for j in range(left.size):
                result[j] = times(left[j], right[j])


_BINARY: dict[str, Callable[..., None]] = {"add": _add, "sub": _sub, "mul": _mul}
_ROW = 1 << 12
"""Elements that a row has at least, where the shapes let one choose: what is done once a row then costs nothing."""
_SHORT = 1 << 8
"""Elements of a row below which it does cost something; rows are shared out among the cores."""


def binary(kind: str, x: Tensor, y: Tensor) -> Tensor:
    """``add``, ``sub`` or ``mul`` of two float32 tensors that broadcast, rounded as elementwise."""
    shape = x.shape if x.shape == y.shape else _broadcast(x.shape, y.shape)
    if kind != "sub" and x.shape != shape:
        x, y = y, x
    x = x.expand(shape).contiguous()
    out = torch.empty_like(x)
    if out.numel() == 0:
        return out
    if y.shape == shape:
        width = math.gcd(out.numel(), _ROW)
        pieces = (flat(x), flat(y.contiguous()), flat(out))
        rows, others, results = (x.reshape(-1, width if width >= _SHORT else x.size) for x in pieces)
        _BINARY[kind](rows, others, 1, results)
        return out
    found = _rows(shape, (*(1,) * (len(shape) - y.dim()), *y.shape))
    if found is None:
        y = y.expand(shape)
        found = _rows(shape, shape)
        assert found is not None
    width, columns, repeat = found
    rows, others, results = flat(x).reshape(-1, width), flat(y.contiguous()).reshape(-1, columns), flat(out)
    _BINARY[kind](rows, others, repeat, results.reshape(-1, width))
    return out


_broadcast = functools.lru_cache(maxsize=4096)(torch.broadcast_shapes)


@functools.lru_cache(maxsize=4096)
def _rows(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Cut ``shape`` into rows such that each meets one row of ``other``, which broadcasts to it.

    Returns the width of a row, the columns of one of ``other`` (the width, or 1), and how many rows in turn meet the
    same row of ``other``; None if axes that ``other`` has and lacks alternate too often.
    """
    axes = [(extent, extent == theirs) for extent, theirs in zip(shape, other, strict=True) if extent != 1]

    def take(shared: bool, enough: float = math.inf) -> int:
        size = 1
        while axes and axes[-1][1] == shared and size < enough:
            size *= axes.pop()[0]
        return size

    columns = take(True, _ROW)
    width = columns if columns > 1 else take(False, _ROW)
    repeat = take(False)
    take(True), take(False)
    return None if axes else (width, columns, repeat)


def scale(x: Tensor, factor: float) -> tuple[Tensor, float]:
    """Return ``x * factor`` rounded as elementwise, and the largest magnitude of ``x`` (inf if any is not finite)."""
    x = x.contiguous()
    out = torch.empty_like(x)
    return out, float_of_largest(_scale(flat(x), np.float32(factor), flat(out)))


@dataclass(frozen=True)
class Deferred:
    """A matmul operand whose scale is left to the product: ``x * factor``, where that rounds nothing."""

    x: Tensor
    factor: float


def defer_scale(x: Tensor, factor: float) -> tuple[Deferred, float]:
    """As :func:`scale`, without a pass that writes where float32 sums come out the same.

    A power of two of at least 1 rounds no fp16 number that it leaves in range, and neither it nor its product with
    another such rounds a float32 sum of products of fp16 numbers: these are multiples of 2^-48.
    """
    x = x.contiguous()
    largest = absmax(x)
    if factor >= 1.0 and math.frexp(factor)[0] == 0.5 and largest * factor <= FP16_MAX:
        return Deferred(x, factor), largest
    return Deferred(scale(x, factor)[0], 1.0), largest


def finish_product_(x: Tensor, factor: float | None, carried: float = 1.0) -> float:
    """Round raw sums of the array in place, and multiply them by ``factor`` where given, rounded as elementwise.

    ``carried`` is what deferred scales of the operands left to the sums.
    Returns the largest magnitude of the rounded sums before the factor; inf if any is not finite.
    """
    before = np.float32(carried)
    if factor is None:
        return float_of_largest(_finish(flat(x), before))
    return float_of_largest(_finish_scale(flat(x), before, np.float32(factor)))
