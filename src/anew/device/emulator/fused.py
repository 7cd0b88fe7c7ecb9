"""Kernels that do in one pass over memory what the engine's rules would take several: compute, round, find the maximum.

Each gives bit for bit what the separate functions of :mod:`rounding` give; on the host the passes are what costs.
numba's cache of this file does not notice edits to ``rounding.py``; remove ``__pycache__`` after such an edit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from anew.device.base import INFINITE_PRODUCT
from anew.device.emulator.rounding import (
    INF_BITS,
    absmax,
    apply,
    elementwise_rule,
    flat,
    largest_of_bits,
    magnitude_bits,
    matmul_rule,
)

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


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _scale_slice(x: np.ndarray, factor: np.float32, out: np.ndarray) -> np.int32:
    largest = np.int32(0)
    for i in range(x.size):
        largest = max(largest, magnitude_bits(x[i]))
        out[i] = times(x[i], factor)
    return largest


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _finish_slice(x: np.ndarray, carried: np.float32) -> np.int32:
    largest = np.int32(0)
    for i in range(x.size):
        product = matmul_rule(x[i] * carried)
        largest = max(largest, magnitude_bits(product))
        x[i] = product
    return largest


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _finish_scale_slice(x: np.ndarray, carried: np.float32, factor: np.float32) -> np.int32:
    largest = np.int32(0)
    for i in range(x.size):
        product = matmul_rule(x[i] * carried)
        largest = max(largest, magnitude_bits(product))
        x[i] = times(product, factor)
    return largest


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_slice(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    for i in range(x.size):
        out[i] = elementwise_rule(x[i] + y[i])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _sub_slice(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    for i in range(x.size):
        out[i] = elementwise_rule(x[i] - y[i])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _mul_slice(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    for i in range(x.size):
        out[i] = times(x[i], y[i])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _round_slice(x: np.ndarray) -> np.int32:
    largest = np.int32(0)
    for i in range(x.size):
        largest = max(largest, magnitude_bits(x[i]))
        x[i] = elementwise_rule(x[i])
    return largest


_FUSED: dict[str, Callable[..., Any]] = {"add": _add_slice, "sub": _sub_slice, "mul": _mul_slice}
_PLAIN: dict[str, Callable[..., Tensor]] = {"add": torch.add, "sub": torch.sub, "mul": torch.mul}


def binary(kind: str, x: Tensor, y: Tensor) -> Tensor:
    """``add``, ``sub`` or ``mul`` of two float32 tensors that broadcast, rounded as elementwise."""
    if x.shape == y.shape and x.is_contiguous() and y.is_contiguous():
        out = torch.empty_like(x)
        apply(_FUSED[kind], flat(x), flat(y), flat(out))
        return out
    if kind == "mul" and y.numel() == 1 and y.dim() <= x.dim():
        return scale(x, y.item())[0]
    result = _PLAIN[kind](x, y).contiguous()
    largest = largest_of_bits(apply(_round_slice, flat(result)))
    if kind == "mul" and largest == math.inf:
        return binary(kind, *(operand.contiguous() for operand in torch.broadcast_tensors(x, y)))
    return result


def scale(x: Tensor, factor: float) -> tuple[Tensor, float]:
    """Return ``x * factor`` rounded as elementwise, and the largest magnitude of ``x`` (inf if any is not finite)."""
    x = x.contiguous()
    out = torch.empty_like(x)
    number = np.float32(factor)
    return out, largest_of_bits(apply(lambda a, b: _scale_slice(a, number, b), flat(x), flat(out)))


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
        return largest_of_bits(apply(lambda a: _finish_slice(a, before), flat(x)))
    number = np.float32(factor)
    return largest_of_bits(apply(lambda a: _finish_scale_slice(a, before, number), flat(x)))
