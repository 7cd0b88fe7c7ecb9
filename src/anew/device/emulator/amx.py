"""Matrix products for ``fast`` on a processor's matrix tiles (AMX), several times as fast as float32 arithmetic.

Each fp16 number is the sum of two of bfloat16 (:mod:`packing`), so that a product of two is the sum of four products,
which the tiles form exactly and add up in float32, as a float32 product does with its terms.

One operand, the shorter, is packed whole; of the longer each thread packs what it multiplies next. A piece of the
result is rounded while it is in the cache.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from numba import prange
from torch import Tensor

from anew.device.emulator import tiles
from anew.device.emulator.fused import times
from anew.device.emulator.packing import BLOCK_BYTES, PANEL, pack, pack_block
from anew.device.emulator.rounding import flat, matmul_rule
from anew.device.emulator.tiles import CONFIGURATION, ROW_BYTES, ROWS, TILE_BYTES
from anew.device.team import kernel
from anew.device.transfer import INF_BITS, float_of_largest, magnitude_bits

__all__ = ["multiply"]

GROUP = 4
"""Panels of the longer operand that a thread packs at a time: with `DEPTH` they stay in the L2 cache."""
DEPTH = 32
"""Blocks of terms that are multiplied before the next ones are packed."""
SHORTEST = 96
"""Rows, columns and terms below which packing costs more than it saves."""


@numba.njit
def _add_blocks(
    left: np.ndarray,
    left_at: int,
    right: np.ndarray,
    right_at: int,
    blocks: int,
    sums: np.ndarray,
    at: int,
    pitch: int,
    first: bool,
) -> None:
    """Add the products of two panels to 32 x 32 float32 sums at byte ``at``, rows ``pitch`` bytes apart.

    The ``first`` addition takes the sums to be zero.
    """
    low = at + ROWS * pitch
    if first:
        tiles.clear_0()
        tiles.clear_1()
        tiles.clear_2()
        tiles.clear_3()
    else:
        tiles.load_0(sums, at, pitch)
        tiles.load_1(sums, at + ROW_BYTES, pitch)
        tiles.load_2(sums, low, pitch)
        tiles.load_3(sums, low + ROW_BYTES, pitch)
    for k in range(blocks):
        x, y = left_at + k * BLOCK_BYTES, right_at + k * BLOCK_BYTES
        _load_left(left, x)  # the leading parts
        _load_right(right, y)
        _add()
        _load_right(right, y + 2 * TILE_BYTES)  # the rests of the right operand
        _add()
        _load_left(left, x + 2 * TILE_BYTES)  # of both
        _add()
        _load_right(right, y)
        _add()
    tiles.store_0(sums, at, pitch)
    tiles.store_1(sums, at + ROW_BYTES, pitch)
    tiles.store_2(sums, low, pitch)
    tiles.store_3(sums, low + ROW_BYTES, pitch)


@numba.njit(inline="always")
def _load_left(packed: np.ndarray, at: int) -> None:
    tiles.load_4(packed, at, ROW_BYTES)
    tiles.load_5(packed, at + TILE_BYTES, ROW_BYTES)


@numba.njit(inline="always")
def _load_right(packed: np.ndarray, at: int) -> None:
    tiles.load_6(packed, at, ROW_BYTES)
    tiles.load_7(packed, at + TILE_BYTES, ROW_BYTES)


@numba.njit(inline="always")
def _add() -> None:
    tiles.add_0()
    tiles.add_1()
    tiles.add_2()
    tiles.add_3()


@numba.njit
def _finish(row: np.ndarray, scaled: bool, carried: np.float32, factor: np.float32) -> np.int32:
    """Round a row of sums and scale it, as :func:`fused.finish_product_`."""
    largest = np.int32(0)
    if not scaled:
        for j in range(row.size):
            product = matmul_rule(row[j] * carried)
            largest = max(largest, magnitude_bits(product))
            row[j] = product
    else:
        for j in range(row.size):
            product = matmul_rule(row[j] * carried)
            largest = max(largest, magnitude_bits(product))
            row[j] = times(product, factor)
    return largest


@numba.njit
def _multiply_panels(
    out: np.ndarray,
    corner: np.ndarray,
    left: np.ndarray,
    left_at: int,
    right: np.ndarray,
    right_at: int,
    blocks: int,
    origin: int,
    room: tuple[int, int],
    columns: int,
    first: bool,
) -> None:
    """Add the products of two panels to a piece of a matrix of so many columns, which begins at ``origin``.

    The piece has up to 32 rows and columns, as many as there is ``room`` for.
    """
    rows, size = min(room[0], PANEL), min(room[1], PANEL)
    if rows == PANEL and size == PANEL:
        _add_blocks(left, left_at, right, right_at, blocks, out, 4 * origin, 4 * columns, first)
        return
    for i in range(0 if first else rows):
        corner[i * PANEL : i * PANEL + size] = out[origin + i * columns : origin + i * columns + size]
    _add_blocks(left, left_at, right, right_at, blocks, corner, 0, 4 * PANEL, first)
    for i in range(rows):
        out[origin + i * columns : origin + i * columns + size] = corner[i * PANEL : i * PANEL + size]


@numba.njit
def _multiply_lines(
    out: np.ndarray,
    packed: np.ndarray,
    x: np.ndarray,
    steps: tuple[int, int, int],
    sizes: tuple[int, int, int],
    x_is_left: bool,
    panels: int,
    matrix: int,
    line: int,
    scaled: bool,
    carried: np.float32,
    factor: np.float32,
) -> tuple[np.int32, np.int32]:
    """Multiply so many panels of the lines of ``x``, from ``line`` on, with all of the packed operand."""
    height, width, terms = sizes
    lines, others = (height, width) if x_is_left else (width, height)
    blocks, their_panels = -(-terms // PANEL), -(-others // PANEL)
    room, corner = np.empty(2 * TILE_BYTES // 4, np.int32), np.empty(PANEL * PANEL, np.float32)
    mine = np.empty(panels * min(DEPTH, blocks) * BLOCK_BYTES // 4, np.int32)
    left, right = (mine, packed) if x_is_left else (packed, mine)
    highest, largest = np.int32(0), np.int32(0)
    for chunk in range(0, blocks, DEPTH):
        deep = min(DEPTH, blocks - chunk)
        for p in range(panels):
            for k in range(deep):
                at, term = line + p * PANEL, (chunk + k) * PANEL
                start = matrix * steps[0] + at * steps[1] + term * steps[2]
                to = (p * deep + k) * BLOCK_BYTES
                top = pack_block(x, start, steps[1:], lines - at, terms - term, x_is_left, mine, to, room)
                highest = max(highest, top)
        for other in range(their_panels):
            theirs = ((matrix * their_panels + other) * blocks + chunk) * BLOCK_BYTES
            for p in range(panels):
                at, own = line + p * PANEL, p * deep * BLOCK_BYTES
                row, column = (at, other * PANEL) if x_is_left else (other * PANEL, at)
                left_at, right_at = (own, theirs) if x_is_left else (theirs, own)
                origin, space = (matrix * height + row) * width + column, (height - row, width - column)
                _multiply_panels(out, corner, left, left_at, right, right_at, deep, origin, space, width, chunk == 0)
            if not x_is_left and chunk + deep == blocks:
                size = min(width - line, panels * PANEL)
                for i in range(other * PANEL, min(height, (other + 1) * PANEL)):
                    origin = (matrix * height + i) * width + line
                    largest = max(largest, _finish(out[origin : origin + size], scaled, carried, factor))
    if x_is_left:  # whole rows, as short ones take longer
        origin = (matrix * height + line) * width
        count = min(height - line, panels * PANEL) * width
        largest = _finish(out[origin : origin + count], scaled, carried, factor)
    return highest, largest


@kernel
def _multiply(
    out: np.ndarray,
    packed: np.ndarray,
    x: np.ndarray,
    steps: tuple[int, int, int],
    sizes: tuple[int, int, int],
    x_is_left: bool,
    group: int,
    configuration: np.ndarray,
    scaled: bool,
    carried: np.float32,
    factor: np.float32,
) -> tuple[np.int32, np.int32]:
    """Multiply the operand ``x`` with one that is packed: ``out`` is [matrix, M, N], flat, ``sizes`` are M, N and K.

    Returns the bits of the largest magnitudes of ``x`` and of the result before ``factor``.
    """
    lines = sizes[0] if x_is_left else sizes[1]
    groups = -(-lines // (PANEL * group))
    found = np.zeros((out.size // (sizes[0] * sizes[1]) * groups, 2), np.int32)
    for task in prange(len(found)):
        before = np.zeros(64, np.uint8)
        tiles.save_configuration(before)
        tiles.load_configuration(configuration)
        line = task % groups * group * PANEL
        panels = min(group, -(-(lines - line) // PANEL))
        found[task] = _multiply_lines(
            out, packed, x, steps, sizes, x_is_left, panels, task // groups, line, scaled, carried, factor
        )
        tiles.load_configuration(before)
    return found[:, 0].max(), found[:, 1].max()


def multiply(a: Tensor, b: Tensor, carried: float = 1.0, factor: float | None = None) -> tuple[Tensor, float] | None:
    """Multiply matrices of fp16 numbers; round and scale the sums as :func:`fused.finish_product_` does.

    Args:
        a: float16, or float32 on its grid, [..., M, K]; any strides.
        b: the same [..., K, N]; the leading axes broadcast as in `torch.matmul`.
        carried: what the sums are multiplied with before they are rounded. factor: and after, with a second rounding.

    Returns the product, contiguous float32 [..., M, N], and the largest magnitude before ``factor``; None where the
    tiles do not help: on other processors, for small matrices, and for operands that are not finite.
    """
    if not tiles.available() or a.dim() < 2 or b.dim() < 2:
        return None
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if b.dim() == 2 or b.shape[:-2].numel() == 1:  # all rows of the batch are rows of one product
        a, b = a.expand(*batch, *a.shape[-2:]).reshape(1, -1, a.shape[-1]), b.reshape(1, *b.shape[-2:])
    else:
        a, b = (x.expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:]) for x in (a, b))
    (height, terms), width = a.shape[-2:], b.shape[-1]
    if min(height, width, terms) < SHORTEST:
        return None
    out = torch.empty(*batch, a.shape[-2] // (batch.numel() if len(a) == 1 and batch else 1), width)
    x_is_left = height > width
    x, other = (a, b.mT) if x_is_left else (b.mT, a)
    (lines, others) = (height, width) if x_is_left else (width, height)
    blocks = -(-terms // PANEL)
    packed = torch.empty(len(a) * -(-others // PANEL) * blocks * BLOCK_BYTES // 4, dtype=torch.int32).numpy()
    source, steps = _flat_source(other)
    if pack(packed, source, steps, others, terms, not x_is_left) >= INF_BITS:
        return None
    source, steps = _flat_source(x)
    group = GROUP
    while group > 1 and len(a) * -(-lines // (PANEL * group)) < 4 * torch.get_num_threads():
        group //= 2
    highest, largest = _multiply(
        flat(out),
        packed,
        source,
        steps,
        (height, width, terms),
        x_is_left,
        group,
        CONFIGURATION,
        factor is not None,
        np.float32(carried),
        np.float32(factor or 0.0),
    )
    return None if highest >= INF_BITS else (out, float_of_largest(largest))


def _flat_source(x: Tensor) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The memory behind matrices [matrix, line, term], flat, and the steps along their axes; one of the last is 1."""
    if 1 not in x.stride()[1:]:
        x = x.contiguous()
    steps = x.stride()
    extent = 1 + sum((size - 1) * step for size, step in zip(x.shape, steps, strict=True))
    memory = x.detach().as_strided((extent,), (1,))
    return (memory.view(torch.int16) if x.dtype == torch.float16 else memory).numpy(), (steps[0], steps[1], steps[2])
