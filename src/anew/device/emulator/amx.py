"""Matrix products for ``fast`` on a processor's matrix tiles (AMX), several times as fast as float32 arithmetic.

Each fp16 number is the sum of two of bfloat16 (:mod:`packing`), so that a product of two is the sum of four products,
which the tiles form exactly and add up in float32, as a float32 product does with its terms.

One operand, the shorter, is packed whole; of the longer each thread packs what it multiplies next. A piece of the
result is rounded while it is in the cache.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from torch import Tensor

from anew.device.emulator import tiles
from anew.device.emulator.fused import times
from anew.device.emulator.packing import BLOCK_BYTES, PANEL, pack, pack_block, read
from anew.device.emulator.rounding import matmul_rule
from anew.device.emulator.tiles import CONFIGURATION, ROW_BYTES, ROWS, TILE_BYTES, aligned
from anew.device.team import kernel
from anew.device.transfer import INF_BITS, float_of_largest, magnitude_bits

__all__ = ["multiply"]

GROUP = 4
"""Panels of the longer operand that a thread packs at a time: with `DEPTH` they stay in the L2 cache."""
DEPTH = 64
"""Blocks of terms that are multiplied before the next ones are packed."""
SHORTEST = 96
"""Rows, columns and terms below which packing costs more than it saves."""


@numba.njit
def _add_blocks(
    left: np.ndarray, left_at: int, right: np.ndarray, right_at: int, blocks: int, sums: np.ndarray, first: bool
) -> None:
    """Add the products of two panels to 32 x 32 float32 sums; the ``first`` time these count as zero."""
    at, pitch = 0, 4 * PANEL
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


@intrinsic
def _write_row(typing_context: Any, sums: Any, row: Any, out: Any, start: Any) -> Any:
    """Write 32 sums to neighbouring elements of an array of float32, or of the bits of fp16, which they fit."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        found = read(context, builder, signature.args[0], args[0], args[1], PANEL)
        kind = signature.args[2]
        if kind.dtype == types.int16:
            found = builder.fptrunc(found, ir.VectorType(ir.HalfType(), PANEL))
        data = builder.gep(context.make_array(kind)(context, builder, args[2]).data, [args[3]])
        builder.store(found, builder.bitcast(data, found.type.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(sums, types.int64, out, types.int64), emit


@numba.njit
def _write(sums: np.ndarray, out: np.ndarray, origin: int, pitch: int, room: tuple[int, int], edge: np.ndarray) -> None:
    """Write 32 x 32 sums to rows of ``out`` that are so many elements apart, as far as there is room."""
    rows, size = min(room[0], PANEL), min(room[1], PANEL)
    for i in range(rows):
        if size == PANEL:
            _write_row(sums, i * PANEL, out, origin + i * pitch)
        else:
            _write_row(sums, i * PANEL, edge, 0)
            out[origin + i * pitch : origin + i * pitch + size] = edge[:size]


@numba.njit
def _read(sums: np.ndarray, out: np.ndarray, origin: int, pitch: int, room: tuple[int, int]) -> None:
    """Read 32 x 32 sums from where :func:`_write` wrote them."""
    size = min(room[1], PANEL)
    for i in range(min(room[0], PANEL)):
        sums[i * PANEL : i * PANEL + size] = out[origin + i * pitch : origin + i * pitch + size]


@numba.njit
def _multiply_lines(
    out: np.ndarray,
    pitch: int,
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
    room, sums = aligned(2 * TILE_BYTES // 4), aligned(PANEL * PANEL).view(np.float32)
    edge = np.empty(PANEL, out.dtype)
    mine = aligned(panels * min(DEPTH, blocks) * BLOCK_BYTES // 4)
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
                origin, space = (matrix * height + row) * pitch + column, (height - row, width - column)
                if chunk > 0:
                    _read(sums, out, origin, pitch, space)
                _add_blocks(left, left_at, right, right_at, deep, sums, chunk == 0)
                if chunk + deep == blocks:
                    largest = max(largest, _finish(sums, scaled, carried, factor))
                _write(sums, out, origin, pitch, space, edge)
    return highest, largest


@kernel
def _multiply(
    out: np.ndarray,
    pitch: int,
    matrices: int,
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
    """Multiply the operand ``x`` with one that is packed; ``sizes`` are M, N and K.

    ``out`` is [matrix, M, N], flat, its rows ``pitch`` elements apart.

    Returns the bits of the largest magnitudes of ``x`` and of the result before ``factor``.
    """
    lines = sizes[0] if x_is_left else sizes[1]
    groups = -(-lines // (PANEL * group))
    found = np.zeros((matrices * groups, 2), np.int32)
    for task in prange(len(found)):
        before = np.zeros(64, np.uint8)
        tiles.save_configuration(before)
        tiles.load_configuration(configuration)
        line = task % groups * group * PANEL
        panels = min(group, -(-(lines - line) // PANEL))
        found[task] = _multiply_lines(
            out, pitch, packed, x, steps, sizes, x_is_left, panels, task // groups, line, scaled, carried, factor
        )
        tiles.load_configuration(before)
    return found[:, 0].max(), found[:, 1].max()


def multiply(
    a: Tensor, b: Tensor, carried: float = 1.0, factor: float | None = None, into: Tensor | None = None
) -> tuple[Tensor, float] | None:
    """Multiply matrices of fp16 numbers; round and scale the sums as :func:`fused.finish_product_` does.

    Args:
        a: float16, or float32 on its grid, [..., M, K]; any strides.
        b: the same [..., K, N]; the leading axes broadcast as in `torch.matmul`.
        carried: what the sums are multiplied with before they are rounded. factor: and after, with a second rounding.
        into: float16 [..., M, N] to write the product to, rows at any pitch.

    Returns the product (``into``, or contiguous float32) and the largest magnitude before ``factor``; None where the
    tiles do not help: on other processors, for small matrices, and for operands that are not finite.
    """
    height, terms, width = a.shape[-2], a.shape[-1], b.shape[-1]
    if min(height, width, terms) < SHORTEST or not tiles.available():
        return None
    if b.dim() == 2:  # all rows of the batch are rows of one product
        shape = (*a.shape[:-1], width)
        a, b = a.reshape(1, -1, terms), b[None]
    else:
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        shape = (*batch, height, width)
        a, b = (x.expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:]) for x in (a, b))
    matrices, height, _ = a.shape
    blocks = -(-terms // PANEL)
    out = torch.empty(shape) if into is None or blocks > DEPTH else into  # what is added to again stays float32
    x_is_left = height > width
    x, other = (a, b.mT) if x_is_left else (b.mT, a)
    lines, others = (height, width) if x_is_left else (width, height)
    packed = torch.empty(matrices * -(-others // PANEL) * blocks * BLOCK_BYTES // 4, dtype=torch.int32).numpy()
    if pack(packed, *_flat(other), others, terms, not x_is_left) >= INF_BITS:
        return None
    group = GROUP
    while group > 1 and matrices * -(-lines // (PANEL * group)) < 4 * torch.get_num_threads():
        group //= 2
    target, (_, pitch, _) = _flat(out.view(matrices, height, width))
    highest, largest = _multiply(
        target,
        pitch,
        matrices,
        packed,
        *_flat(x),
        (height, width, terms),
        x_is_left,
        group,
        CONFIGURATION,
        factor is not None,
        np.float32(carried),
        np.float32(factor or 0.0),
    )
    if highest >= INF_BITS:
        return None
    return (out if into is None or out is into else into.copy_(out)), float_of_largest(largest)


def _flat(x: Tensor) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The memory behind matrices [matrix, line, term], flat, and the steps along their axes; one of the last is 1."""
    if 1 not in x.stride()[1:]:
        x = x.contiguous()
    (matrices, lines, terms), (step, line_step, term_step) = x.shape, x.stride()
    extent = 1 + (matrices - 1) * step + (lines - 1) * line_step + (terms - 1) * term_step
    memory = x.detach().as_strided((extent,), (1,))
    found = memory.view(torch.int16) if x.dtype == torch.float16 else memory
    return found.numpy(), (step, line_step, term_step)
