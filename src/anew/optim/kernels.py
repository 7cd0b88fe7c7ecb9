"""Adam's update as kernels of the host: gradients read as the engine left them, weights written as it reads them.

A gradient is a sum of up to three terms, any of them absent: a float32 tensor, and two of fp16 bits with a factor each.
Or it is the sum of the last two but for some rows, which are in float32.
Kernels work on rows in blocks that stay in the first-level cache: each number of a parameter is read from memory once
and written once. Sums are taken in an order that no number of threads changes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from anew.device.team import COMPILED, kernel
from anew.device.transfer import float_of_half, half_of_float, magnitude_bits

#: Elements of a block: five arrays of so many fill most of a first-level cache of 32 KiB.
BLOCK = 1024
#: Shares that the rows are divided into, whatever the number of threads.
TASKS = 64


@intrinsic
def fused_multiply_add(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` of float32 numbers, rounded once."""
    signature = types.float32(types.float32, types.float32, types.float32)
    return signature, lambda context, builder, signature, args: builder.fma(*args)


@intrinsic
def float_bits(typing_context: Any, x: Any) -> Any:
    """The bits of a float32."""
    return types.int32(types.float32), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.IntType(32)
    )


@njit(**COMPILED)
def _halves(source: np.ndarray, factor: np.float32, g: np.ndarray) -> None:
    for j in range(g.size):
        g[j] = float_of_half(source[j]) * factor


@njit(**COMPILED)
def _add_halves(source: np.ndarray, factor: np.float32, g: np.ndarray) -> None:
    for j in range(g.size):
        g[j] += float_of_half(source[j]) * factor


@njit(**COMPILED)
def _to_halves(p: np.ndarray, factor: np.float32, out: np.ndarray) -> np.int32:
    """Write ``p * factor`` in fp16; returns the largest magnitude of ``p`` as float32 bits."""
    largest = np.int32(0)
    for j in range(p.size):
        largest = max(largest, magnitude_bits(p[j]))
        out[j] = half_of_float(p[j] * factor)
    return largest


@njit(**COMPILED)
def _gradient(
    dense: np.ndarray,
    places: np.ndarray,
    first: np.ndarray,
    first_factor: np.float32,
    second: np.ndarray,
    second_factor: np.float32,
    row: int,
    start: int,
    g: np.ndarray,
) -> None:
    """Fill ``g`` with a row's gradient from column ``start`` on."""
    stop = start + g.size
    if places.size and places[row] >= 0:
        g[:] = dense[places[row], start:stop]
        return
    if dense.size and not places.size:
        g[:] = dense[row, start:stop]
        if first.size:
            _add_halves(first[row, start:stop], first_factor, g)
    elif first.size:
        _halves(first[row, start:stop], first_factor, g)
    else:
        g[:] = np.float32(0.0)
    if second.size:
        _add_halves(second[row, start:stop], second_factor, g)


@njit(fastmath={"reassoc"}, **COMPILED)
def _squares_of(g: np.ndarray) -> np.float64:
    total = np.float64(0.0)
    for j in range(g.size):
        total += np.float64(g[j]) * np.float64(g[j])
    return total


@kernel
def squares(
    like: np.ndarray,
    dense: np.ndarray,
    places: np.ndarray,
    first: np.ndarray,
    first_factor: np.float32,
    second: np.ndarray,
    second_factor: np.float32,
    sums: np.ndarray,
) -> None:
    """Write to ``sums`` [TASKS] the sums of squares of a gradient's elements, float64; ``like`` has its shape."""
    count, width = like.shape
    for task in prange(TASKS):
        g = np.empty(min(BLOCK, width), np.float32)
        total = np.float64(0.0)
        for row in range(count * task // TASKS, count * (task + 1) // TASKS):
            for start in range(0, width, BLOCK):
                part = g[: min(BLOCK, width - start)]
                _gradient(dense, places, first, first_factor, second, second_factor, row, start, part)
                total += _squares_of(part)
        sums[task] = total


@njit(**COMPILED)
def _moments(
    m: np.ndarray, v: np.ndarray, g: np.ndarray, beta1_gap: np.float32, beta2: np.float32, beta2_gap: np.float32
) -> None:
    """Move both moments, with the roundings of torch's fused kernel."""
    if beta1_gap < np.float32(0.5):
        for j in range(g.size):
            m[j] = fused_multiply_add(beta1_gap, g[j] - m[j], m[j])
    else:
        for j in range(g.size):
            m[j] = fused_multiply_add(beta1_gap - np.float32(1.0), g[j] - m[j], g[j])
    for j in range(g.size):
        v[j] = fused_multiply_add(beta2_gap * g[j], g[j], v[j] * beta2)


@njit(**COMPILED)
def _update(
    p: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    g: np.ndarray,
    clip: np.float32,
    beta1_gap: np.float32,
    beta2: np.float32,
    beta2_gap: np.float32,
    root_correction: np.float32,
    eps: np.float32,
    step_size: np.float32,
    decay: np.float32,
    coupled: np.float32,
) -> None:
    if clip != np.float32(1.0):
        for j in range(g.size):
            g[j] *= clip
    if coupled != np.float32(0.0):
        for j in range(g.size):
            g[j] = fused_multiply_add(p[j], coupled, g[j])
    if decay != np.float32(1.0):
        for j in range(g.size):
            p[j] *= decay
    _moments(m, v, g, beta1_gap, beta2, beta2_gap)
    for j in range(g.size):
        p[j] += -step_size * m[j] / (math.sqrt(v[j]) / root_correction + eps)


@njit(**COMPILED)
def _checksum(p: np.ndarray) -> np.int64:
    total = np.int64(0)
    for j in range(p.size):
        total += np.int64(float_bits(p[j]))
    return total


@kernel
def adam(
    weight: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    dense: np.ndarray,
    places: np.ndarray,
    first: np.ndarray,
    first_factor: np.float32,
    second: np.ndarray,
    second_factor: np.float32,
    clip: np.float32,
    beta1_gap: np.float32,
    beta2: np.float32,
    beta2_gap: np.float32,
    root_correction: np.float32,
    eps: np.float32,
    step_size: np.float32,
    decay: np.float32,
    coupled: np.float32,
    buffer: np.ndarray,
    factor: np.float32,
    found: np.ndarray,
) -> None:
    """One step of Adam on a matrix, in place, and its fp16 form.

    Args:
        weight, m, v: float32 [rows, columns]: the weight and its moments.
        dense, places, first, first_factor, second, second_factor: the gradient. ``dense`` is of the weight's
            shape, the halves are int16 [rows, pitch]; each has no elements where it is absent. With ``places``, int32
            [rows], ``dense`` has all of the gradient of some rows, at the place that is not negative.
        clip: what the gradient is multiplied by.
        beta1_gap, beta2, beta2_gap: 1 - beta1, beta2, 1 - beta2.
        root_correction: the square root of beta2's bias correction.
        step_size: learning rate over beta1's bias correction.
        decay: what the weight is multiplied by first; 1 if it does not decay. coupled: decay as part of the gradient.
        buffer: int16 [rows, pitch], gets ``weight * factor`` in fp16; without elements it is left out.
        found: int64 [TASKS, 3], gets the largest magnitude of the new weight as float32 bits, and the sums of the
            weight's bits before and after.
    """
    count, width = weight.shape
    for task in prange(TASKS):
        g = np.empty(min(BLOCK, width), np.float32)
        largest, before, after = np.int32(0), np.int64(0), np.int64(0)
        for row in range(count * task // TASKS, count * (task + 1) // TASKS):
            for start in range(0, width, BLOCK):
                stop = min(start + BLOCK, width)
                part = g[: stop - start]
                p, m_part, v_part = weight[row, start:stop], m[row, start:stop], v[row, start:stop]
                _gradient(dense, places, first, first_factor, second, second_factor, row, start, part)
                before += _checksum(p)
                _update(
                    p,
                    m_part,
                    v_part,
                    part,
                    clip,
                    beta1_gap,
                    beta2,
                    beta2_gap,
                    root_correction,
                    eps,
                    step_size,
                    decay,
                    coupled,
                )
                after += _checksum(p)
                if buffer.size:
                    largest = max(largest, _to_halves(p, factor, buffer[row, start:stop]))
        found[task, 0], found[task, 1], found[task, 2] = largest, before, after
