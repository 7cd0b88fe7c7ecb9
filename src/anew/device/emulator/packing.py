"""fp16 numbers as pairs of bfloat16 in the order in which a processor's matrix tiles take them.

A number of fp16 has 11 significant bits, one of bfloat16 eight and a wider range: an fp16 number is exactly the sum of
two of bfloat16, its leading part (the nearest of bfloat16) and a rest, which is at most 2^-9 of it.

A panel is 32 lines (rows of a left operand, columns of a right one); for each 32 terms of its lines it holds a block of
four tiles: the leading parts of its two halves, then their rests. A tile of rows is [line, term]; one of columns is
[pair of terms, line], the two terms side by side.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from anew.device.emulator.tiles import ROW_BYTES, ROWS, TILE_BYTES, address, aligned, transpose
from anew.device.team import kernel

PANEL = 2 * ROWS
"""Lines of a panel, and terms of a block."""
BLOCK_BYTES = 4 * TILE_BYTES

AHEAD = 8
"""Blocks of terms that are on their way from memory while one is packed: the next lines of sixteen are far apart."""
_WORD, _HALF, _REAL = ir.IntType(32), ir.IntType(16), ir.FloatType()


def _vector(kind: ir.Type, count: int) -> ir.Type:
    return ir.VectorType(kind, count)


def _splat(kind: ir.Type, count: int, value: int) -> ir.Constant:
    return ir.Constant(_vector(kind, count), [value] * count)


def read(context: Any, builder: ir.IRBuilder, kind: Any, array: ir.Value, start: ir.Value, count: int) -> ir.Value:
    """Neighbouring elements of an array of float32, or of the bits of fp16 (int16), as float32."""
    stored = ir.HalfType() if kind.dtype == types.int16 else _REAL
    data = builder.gep(context.make_array(kind)(context, builder, array).data, [start])
    found = builder.load(builder.bitcast(data, _vector(stored, count).as_pointer()), align=2)
    return found if stored == _REAL else builder.fpext(found, _vector(_REAL, count))


def _prefetch(context: Any, builder: ir.IRBuilder, kind: Any, array: ir.Value, start: ir.Value) -> None:
    """Ask for the cache line of an element, which may lie beyond the array: nothing is read."""
    byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
    data = builder.gep(context.make_array(kind)(context, builder, array).data, [start])
    signature = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
    prefetch = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    builder.call(prefetch, [builder.bitcast(data, byte), flag(0), flag(2), flag(1)])


def _parts(builder: ir.IRBuilder, x: ir.Value, count: int) -> tuple[ir.Value, ir.Value]:
    """The bits of float32 numbers rounded to bfloat16 (ties away) and of what that leaves, each in the upper halves."""
    words = _vector(_WORD, count)
    rounded = builder.add(builder.bitcast(x, words), _splat(_WORD, count, 0x8000))
    leading = builder.and_(rounded, _splat(_WORD, count, 0xFFFF0000))
    return leading, builder.bitcast(builder.fsub(x, builder.bitcast(leading, x.type)), words)


def _largest(builder: ir.IRBuilder, bits: list[ir.Value], count: int) -> ir.Value:
    """The largest of magnitudes, as float32 bits, which order as the magnitudes do."""
    words = _vector(_WORD, count)
    kind = ir.FunctionType(_WORD, [words])
    reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.umax.v{count}i32")
    tops = [builder.and_(x, _splat(_WORD, count, 0x7FFFFFFF)) for x in bits]
    top = tops[0]
    for other in tops[1:]:
        top = builder.select(builder.icmp_unsigned(">", top, other), top, other)
    return builder.call(reduce, [top])


def _write(context: Any, builder: ir.IRBuilder, kind: Any, array: ir.Value, at: ir.Value, x: ir.Value) -> None:
    builder.store(x, builder.bitcast(address(context, builder, kind, array, at), x.type.as_pointer()), align=4)


@intrinsic
def _split_terms(typing_context: Any, x: Any, start: Any, packed: Any, leading: Any, rests: Any) -> Any:
    """Split 32 neighbouring terms of a line into bfloat16, side by side at two bytes of ``packed``.

    Returns the bits of the largest magnitude.
    """

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        terms = read(context, builder, signature.args[0], args[0], args[1], PANEL)
        _prefetch(context, builder, signature.args[0], args[0], builder.add(args[1], ir.IntType(64)(AHEAD * PANEL)))
        parts = _parts(builder, terms, PANEL)
        for bits, at in zip(parts, args[3:], strict=True):
            halves = builder.trunc(builder.lshr(bits, _splat(_WORD, PANEL, 16)), _vector(_HALF, PANEL))
            _write(context, builder, signature.args[2], args[2], at, halves)
        return _largest(builder, [parts[0]], PANEL)

    return types.int32(x, types.int64, packed, types.int64, types.int64), emit


@intrinsic
def _split_lines(typing_context: Any, x: Any, even: Any, odd: Any, packed: Any, leading: Any, rests: Any) -> Any:
    """Split two neighbouring terms of 16 lines, which are neighbours in memory; as `_split_terms`."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        low, high = (
            _parts(builder, read(context, builder, signature.args[0], args[0], start, ROWS), ROWS)
            for start in args[1:3]
        )
        for even_bits, odd_bits, at in zip(low, high, args[4:], strict=True):
            first = builder.lshr(even_bits, _splat(_WORD, ROWS, 16))
            second = builder.and_(odd_bits, _splat(_WORD, ROWS, 0xFFFF0000))
            _write(context, builder, signature.args[3], args[3], at, builder.or_(first, second))
        return _largest(builder, [low[0], high[0]], ROWS)

    return types.int32(x, types.int64, types.int64, packed, types.int64, types.int64), emit


@numba.njit
def _rows_of_half(
    x: np.ndarray, start: int, step: int, lines: int, terms: int, packed: np.ndarray, leading: int, rests: int
) -> np.int32:
    """Split up to 16 lines whose terms are neighbours into tiles of rows; zeros fill them up."""
    largest = np.int32(0)
    if lines >= ROWS and terms >= PANEL:
        for line in range(ROWS):
            to = line * ROW_BYTES
            largest = max(largest, _split_terms(x, start + line * step, packed, leading + to, rests + to))
        return largest
    padded = np.zeros(PANEL, x.dtype)
    for line in range(ROWS):
        padded[:] = 0
        if line < lines:
            size = min(PANEL, terms)
            padded[:size] = x[start + line * step : start + line * step + size]
        to = line * ROW_BYTES
        largest = max(largest, _split_terms(padded, 0, packed, leading + to, rests + to))
    return largest


@numba.njit
def _columns_of_half(
    x: np.ndarray, start: int, step: int, lines: int, terms: int, packed: np.ndarray, leading: int, rests: int
) -> np.int32:
    """Split up to 16 lines that are neighbours in memory into tiles of columns; zeros fill them up."""
    largest = np.int32(0)
    if lines >= ROWS and terms >= PANEL:
        for pair in range(ROWS):
            even, to = start + 2 * pair * step, pair * ROW_BYTES
            largest = max(largest, _split_lines(x, even, even + step, packed, leading + to, rests + to))
        return largest
    padded = np.zeros(PANEL, x.dtype)
    for pair in range(ROWS):
        padded[:] = 0
        for odd in range(2):
            if lines > 0 and 2 * pair + odd < terms:
                size, origin = min(ROWS, lines), start + (2 * pair + odd) * step
                padded[odd * ROWS : odd * ROWS + size] = x[origin : origin + size]
        to = pair * ROW_BYTES
        largest = max(largest, _split_lines(padded, 0, ROWS, packed, leading + to, rests + to))
    return largest


@numba.njit
def pack_block(
    x: np.ndarray,
    start: int,
    steps: tuple[int, int],
    lines: int,
    terms: int,
    as_rows: bool,
    packed: np.ndarray,
    at: int,
    room: np.ndarray,
) -> np.int32:
    """Pack a block, up to 32 lines of up to 32 terms, to byte ``at`` of ``packed`` (inside numba kernels only).

    Args:
        x: float32 on the fp16 grid or the bits of fp16, flat. start: where the block begins in it.
        steps: elements from a line to the next, and from a term to the next; one of them is 1.
        as_rows: whether tiles of rows are wanted, or tiles of columns.
        packed: int32, flat. room: int32, two tiles to work in.

    Returns the float32 bits of the largest magnitude.
    """
    largest = np.int32(0)
    line_step, term_step = steps
    rows = term_step == 1
    turned = rows != as_rows
    for half in range(2):
        origin, count = start + half * ROWS * line_step, lines - half * ROWS
        leading = at + half * TILE_BYTES
        rests = leading + 2 * TILE_BYTES
        target, to, and_to = (room, 0, TILE_BYTES) if turned else (packed, leading, rests)
        if rows:
            top = _rows_of_half(x, origin, line_step, count, terms, target, to, and_to)
        else:
            top = _columns_of_half(x, origin, term_step, count, terms, target, to, and_to)
        largest = max(largest, top)
        if turned:
            transpose(room, 0, packed, leading)
            transpose(room, TILE_BYTES, packed, rests)
    return largest


@numba.njit
def _pack_panel(
    packed: np.ndarray,
    at: int,
    x: np.ndarray,
    start: int,
    steps: tuple[int, int],
    lines: int,
    terms: int,
    as_rows: bool,
) -> np.int32:
    """Pack all terms of up to 32 lines."""
    largest = np.int32(0)
    room = aligned(2 * TILE_BYTES // 4)
    for k in range(-(-terms // PANEL)):
        origin, left = start + k * PANEL * steps[1], terms - k * PANEL
        top = pack_block(x, origin, steps, lines, left, as_rows, packed, at + k * BLOCK_BYTES, room)
        largest = max(largest, top)
    return largest


@kernel
def pack(
    packed: np.ndarray, x: np.ndarray, steps: tuple[int, int, int], lines: int, terms: int, as_rows: bool
) -> np.int32:
    """Pack all matrices of an operand: int32 [matrix, panel, block, words], flat.

    ``steps`` are the elements from a matrix, a line and a term to the next. Returns as :func:`pack_block`.
    """
    largest = np.int32(0)
    panels, size = -(-lines // PANEL), -(-terms // PANEL) * BLOCK_BYTES
    for task in prange(packed.size * 4 // size):
        line = task % panels * PANEL
        start = task // panels * steps[0] + line * steps[1]
        top = _pack_panel(packed, task * size, x, start, steps[1:], lines - line, terms, as_rows)
        largest = max(largest, top)
    return largest
