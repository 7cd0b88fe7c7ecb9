"""Kernels that do in one pass over memory what the engine's rules would take several: compute, round, find the maximum.

Each gives bit for bit what the separate functions of :mod:`rounding` give; on the host the passes are what costs.
numba's cache of this file does not notice edits to ``rounding.py``; remove ``__pycache__`` after such an edit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from anew.device.emulator.rounding import apply, elementwise_rule, flat, largest_of_bits, magnitude_bits, matmul_rule


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _scale_slice(x: np.ndarray, factor: np.float32, out: np.ndarray) -> np.int32:
    largest = np.int32(0)
    for i in range(x.size):
        largest = max(largest, magnitude_bits(x[i]))
        out[i] = elementwise_rule(x[i] * factor)
    return largest


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _finish_slice(x: np.ndarray) -> np.int32:
    largest = np.int32(0)
    for i in range(x.size):
        product = matmul_rule(x[i])
        largest = max(largest, magnitude_bits(product))
        x[i] = product
    return largest


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _finish_scale_slice(x: np.ndarray, factor: np.float32) -> np.int32:
    largest = np.int32(0)
    for i in range(x.size):
        product = matmul_rule(x[i])
        largest = max(largest, magnitude_bits(product))
        x[i] = elementwise_rule(product * factor)
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
        out[i] = elementwise_rule(x[i] * y[i])


FUSED: dict[str, Callable[..., Any]] = {"add": _add_slice, "sub": _sub_slice, "mul": _mul_slice}


def fuses(x: Tensor, y: Tensor) -> bool:
    """Whether :func:`binary` takes these operands: of equal shape and contiguous."""
    return x.shape == y.shape and x.is_contiguous() and y.is_contiguous()


def binary(kind: str, x: Tensor, y: Tensor) -> Tensor:
    """``add``, ``sub`` or ``mul`` of two contiguous float32 tensors of one shape, rounded as elementwise."""
    out = torch.empty_like(x)
    apply(FUSED[kind], flat(x), flat(y), flat(out))
    return out


def scale(x: Tensor, factor: float) -> tuple[Tensor, float]:
    """Return ``x * factor`` rounded as elementwise, and the largest magnitude of ``x`` (inf if any is not finite)."""
    x = x.contiguous()
    out = torch.empty_like(x)
    number = np.float32(factor)
    return out, largest_of_bits(apply(lambda a, b: _scale_slice(a, number, b), flat(x), flat(out)))


def finish_product_(x: Tensor, factor: float | None) -> float:
    """Round raw sums of the array in place, and multiply them by ``factor`` where given, rounded as elementwise.

    Returns the largest magnitude of the rounded sums before the factor; inf if any is not finite.
    """
    if factor is None:
        return largest_of_bits(apply(_finish_slice, flat(x)))
    number = np.float32(factor)
    return largest_of_bits(apply(lambda a: _finish_scale_slice(a, number), flat(x)))
