"""The multiply-accumulate array of the engine, bit for bit.

The rule (ANEForge 0.4.0 figures; facts: bit-exact multiply-accumulate rule), for fp16 operands x and w:

1. subnormal operands take part, and the product is exact;
2. the product is flushed to zero if E(x) + E(w) < -16, where E is the exponent of a normal value and -14 of
   a subnormal one;
3. otherwise the product is rounded to the nearest multiple of 2^-16, ties away from zero;
4. the products of one output are summed exactly;
5. the sum is rounded to fp16, ties away from zero; a rounded magnitude of 32768 or more becomes infinite.

How one fused multiply-add and one integer add compute rules 1 to 4
-------------------------------------------------------------------
Count in units of 2^-16, so that rule 3 rounds to an integer, and let p be the exact product x * w.

*Rounding.* A fused multiply-add computes p + 1.5 * 2^23 with one rounding. For |p| < 2^22 the result lies
where neighbouring float32 values differ by one, so its bits are a constant plus p rounded to an integer.
That rounding sends ties to even. Moving x away from zero by one unit in its last place (a relative change
of at most 2^-23) turns it into ties away: a tie moves past the middle, and nothing else crosses it. For p
has at most 22 significant bits: p = m * 2^g with |m| < 2^22. If g >= 0, p is an integer and moves by less than
one half. Otherwise ties are multiples of 2^g too, so any other value is at least 2^g from a tie and moves by
less than 2^(g-1).

*Flush.* For a given x the kept w are those with |w| >= 2^(-16 - E(x)). If that threshold is at or below
2^-14, every w is kept: a smaller w has E = -14. So only the x with E(x) < -2 need the comparison.

*Sum.* Int32 accumulators wrap modulo 2^32, constants included, and the true sum is recovered as long as it
fits. Each product is at most 2^22, so `_SPILL` = 256 of them stay below 2^31 and go to an int64 then.

*Large products.* Terms that may reach 64 = 2^22 units, found by comparing |x| to the largest |w| it meets,
take the same path in float64 and int64, with 1.5 * 2^52. |p| is then below 2^48 and moves by less than 2^-3,
and sums of up to 32767 products of any finite operands are exact.
"""

import math
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from anew.device.emulator.amx import multiply
from anew.device.emulator.fused import finish_product_
from anew.device.emulator.rounding import (
    absmax,
    fixed_point_to_fp16,
    float_of_bits,
    one_ulp_up,
    power_of_two_part,
)
from anew.device.emulator.sums import float32_matmul
from anew.device.team import run_tasks
from anew.device.transfer import magnitude_bits

__all__ = ["fixed_point_sums", "matmul_exact", "matmul_fast", "matmul_finished"]

_COLUMNS = 256
"""Columns of a tile: accumulators of one row stay in the L1 cache."""
_DEPTH = 32
"""Terms of a tile: 32 x 256 float32 of the right operand fill 32 KiB of the L1 cache."""
_ROWS = 128
"""Rows that share one copy of a panel of the right operand."""
_SPILL = 256
"""Terms of a panel of the right operand, and of an int32 accumulator: a multiple of `_DEPTH` below 512."""
_UNROLL = 4
"""Terms added in one pass over the accumulators of a row."""

_MAGIC32 = 1.5 * 2.0**23
_MAGIC64 = 1.5 * 2.0**52
_MAGIC32_BITS = 0x4B400000
_MAGIC64_BITS = 0x4338000000000000
_UNITS = 2.0**16
_LARGE = 64.0


def _fused_term(real: ir.Type, integer: ir.Type, magic: float, flush: bool) -> Any:
    """Numba intrinsic: accumulator + bits of fma(x, w, magic); with `flush`, w below the threshold counts as zero."""
    kind, count = (types.float32, types.int32) if real == ir.FloatType() else (types.float64, types.int64)

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        accumulator, x, w, threshold = args
        module = builder.module
        if flush:
            absolute = builder.call(module.declare_intrinsic("llvm.fabs", [real], ir.FunctionType(real, [real])), [w])
            w = builder.select(builder.fcmp_ordered(">=", absolute, threshold), w, real(0.0))
        fma = module.declare_intrinsic("llvm.fma", [real], ir.FunctionType(real, [real] * 3))
        return builder.add(accumulator, builder.bitcast(builder.call(fma, [x, w, real(magic)]), integer))

    @intrinsic
    def term(typing_context: Any, accumulator: Any, x: Any, w: Any, threshold: Any) -> Any:
        return count(count, kind, kind, kind), emit

    return term


_add_plain = _fused_term(ir.FloatType(), ir.IntType(32), _MAGIC32, flush=False)
_add_flushed = _fused_term(ir.FloatType(), ir.IntType(32), _MAGIC32, flush=True)
_add_large = _fused_term(ir.DoubleType(), ir.IntType(64), _MAGIC64, flush=True)


@numba.njit(inline="always")
def _flush_threshold(x: np.float32) -> np.float32:
    """Smallest |w| whose product with nonzero x is kept; 0 if all are."""
    part = max(power_of_two_part(x), np.float32(2.0**-14))
    return np.float32(0.0) if part >= np.float32(0.25) else np.float32(2.0**-16) / part


@numba.njit(nogil=True, error_model="numpy")
def _transpose(source: np.ndarray, target: np.ndarray) -> None:
    """Copy source [columns, depth] to target [depth, columns], reading eight rows at a time as streams."""
    columns, depth = source.shape
    whole = columns - columns % 8
    for c in range(0, whole, 8):
        rows, strip = source[c : c + 8], target[:, c : c + 8]
        for k in range(depth):
            for i in range(8):
                strip[k, i] = rows[i, k]
    for c in range(whole, columns):
        for k in range(depth):
            target[k, c] = source[c, k]


@numba.njit(nogil=True, error_model="numpy")
def _row_peaks(panel: np.ndarray, columns: int, peak: np.ndarray) -> None:
    """Largest magnitude of each row over the columns in use."""
    for k in range(panel.shape[0]):
        row = panel[k, :columns]
        largest = np.int32(0)
        for c in range(row.size):
            largest = max(largest, magnitude_bits(row[c]))
        peak[k] = float_of_bits(largest)


@numba.njit(nogil=True, error_model="numpy")
def _plain_terms(sums: np.ndarray, tile: np.ndarray, k: np.ndarray, x: np.ndarray) -> None:
    """Add four terms, none of which can be flushed, to each accumulator of a row."""
    x0, x1, x2, x3 = x[0], x[1], x[2], x[3]
    w0, w1, w2, w3 = tile[k[0]], tile[k[1]], tile[k[2]], tile[k[3]]
    for c in range(sums.size):
        s = _add_plain(sums[c], x0, w0[c], x0)
        s = _add_plain(s, x1, w1[c], x1)
        s = _add_plain(s, x2, w2[c], x2)
        sums[c] = _add_plain(s, x3, w3[c], x3)


@numba.njit(nogil=True, error_model="numpy")
def _flushed_terms(sums: np.ndarray, tile: np.ndarray, k: np.ndarray, x: np.ndarray, threshold: np.ndarray) -> None:
    """Add four terms with the flush rule to each accumulator of a row."""
    x0, x1, x2, x3 = x[0], x[1], x[2], x[3]
    t0, t1, t2, t3 = threshold[0], threshold[1], threshold[2], threshold[3]
    w0, w1, w2, w3 = tile[k[0]], tile[k[1]], tile[k[2]], tile[k[3]]
    for c in range(sums.size):
        s = _add_flushed(sums[c], x0, w0[c], t0)
        s = _add_flushed(s, x1, w1[c], t1)
        s = _add_flushed(s, x2, w2[c], t2)
        sums[c] = _add_flushed(s, x3, w3[c], t3)


@numba.njit(nogil=True, error_model="numpy")
def _large_term(sums: np.ndarray, w: np.ndarray, x: np.float64, threshold: np.float64) -> None:
    """Add one term whose products may reach 64 to each int64 accumulator of a row."""
    for c in range(sums.size):
        sums[c] = _add_large(sums[c], x, np.float64(w[c]), threshold) - np.int64(_MAGIC64_BITS)


@numba.njit(nogil=True, error_model="numpy")
def _pad(count: int, k: np.ndarray, x: np.ndarray) -> int:
    """Fill up the last group of terms with zero terms; return the new count."""
    while count % _UNROLL:
        k[count] = 0
        x[count] = 0
        count += 1
    return count


@numba.njit(nogil=True, error_model="numpy")
def _row_terms(
    x: np.ndarray, tile: np.ndarray, peak: np.ndarray, narrow: np.ndarray, wide: np.ndarray, lists: tuple
) -> int:
    """Add the terms of one row and one tile; return how many went to the int32 accumulators `narrow`.

    The terms are first sorted into those the flush rule cannot touch, those it can and those that are large
    (sums do not depend on order). Zeros, frequent after a relu or a mask, are left out.
    """
    plain_k, plain_x, flushed_k, flushed_x, flushed_threshold = lists
    plain = 0
    flushed = 0
    for k in range(x.size):
        value = x[k]
        if value == 0 or peak[k] == 0:
            continue
        threshold = _flush_threshold(value)
        if abs(value) * peak[k] >= np.float32(_LARGE):
            scaled = np.float64(value) * _UNITS
            _large_term(wide, tile[k], scaled + scaled * 2.0**-52, np.float64(threshold))
        elif threshold == 0:
            plain_k[plain] = k
            plain_x[plain] = one_ulp_up(value * np.float32(_UNITS))
            plain += 1
        else:
            flushed_k[flushed] = k
            flushed_x[flushed] = one_ulp_up(value * np.float32(_UNITS))
            flushed_threshold[flushed] = threshold
            flushed += 1
    plain = _pad(plain, plain_k, plain_x)
    flushed = _pad(flushed, flushed_k, flushed_x)
    for i in range(0, plain, _UNROLL):
        _plain_terms(narrow, tile, plain_k[i:], plain_x[i:])
    for i in range(0, flushed, _UNROLL):
        _flushed_terms(narrow, tile, flushed_k[i:], flushed_x[i:], flushed_threshold[i:])
    return plain + flushed


@numba.njit(nogil=True, error_model="numpy")
def _spill(narrow: np.ndarray, terms: np.ndarray, wide: np.ndarray) -> None:
    """Move the int32 sums of each row to its int64 sums, less the constant each of its terms brought along."""
    for r in range(terms.size):
        constant = np.int32(terms[r] * _MAGIC32_BITS)
        source, target = narrow[r], wide[r]
        for c in range(target.size):
            target[c] += np.int32(source[c] - constant)
            source[c] = 0
        terms[r] = 0


@numba.njit(nogil=True, error_model="numpy")
def _scratch() -> tuple:
    """Allocate what one thread needs: panel, its peaks, int32 sums, their counts of terms, lists of terms."""
    panel = np.empty((_SPILL, _COLUMNS), np.float32)
    peak = np.empty(_SPILL, np.float32)
    narrow = np.zeros((_ROWS, _COLUMNS), np.int32)
    terms = np.zeros(_ROWS, np.int64)
    lists = (
        np.empty(_DEPTH, np.int64),
        np.empty(_DEPTH, np.float32),
        np.empty(_DEPTH, np.int64),
        np.empty(_DEPTH, np.float32),
        np.zeros(_DEPTH, np.float32),
    )
    return panel, peak, narrow, terms, lists


@numba.njit(nogil=True, error_model="numpy")
def _block_sums(a: np.ndarray, b: np.ndarray, transposed: bool, wide: np.ndarray, scratch: tuple) -> None:
    """Add the exact sums of rows a [rows, K] and columns b [K, columns] (or [columns, K]) to zeroed `wide`."""
    whole_panel, peak, narrow, terms, lists = scratch
    rows, depth = a.shape
    columns = wide.shape[1]
    for p0 in range(0, depth, _SPILL):
        p1 = min(p0 + _SPILL, depth)
        panel = whole_panel[: p1 - p0]
        if transposed:
            _transpose(b[:, p0:p1], panel)
        else:
            panel[:, :columns] = b[p0:p1]
        _row_peaks(panel, columns, peak)
        for k0 in range(0, p1 - p0, _DEPTH):
            tile, left = panel[k0 : k0 + _DEPTH], a[:, p0 + k0 : min(p0 + k0 + _DEPTH, p1)]
            for r in range(rows):
                terms[r] += _row_terms(left[r], tile, peak[k0:], narrow[r, :columns], wide[r], lists)
        _spill(narrow, terms[:rows], wide)


@numba.njit(nogil=True, error_model="numpy")
def _block_bounds(index: int, rows: int, height: int, width: int) -> tuple[int, int, int, int, int]:
    """Batch entry, row range and column range of block `index` of results [batch, height, width]."""
    across = (width + _COLUMNS - 1) // _COLUMNS
    down = (height + rows - 1) // rows
    c0 = index % across * _COLUMNS
    r0 = index // across % down * rows
    return index // (across * down), r0, min(r0 + rows, height), c0, min(c0 + _COLUMNS, width)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _sum_blocks(
    a: np.ndarray,
    b: np.ndarray,
    entries: np.ndarray,
    transposed: bool,
    rows: int,
    out: np.ndarray,
    start: int,
    stop: int,
) -> None:
    """Blocks start to stop of the exact sums, to int64 `out`; `entries` [batch, 2] selects the operands."""
    scratch = _scratch()
    for index in range(start, stop):
        i, r0, r1, c0, c1 = _block_bounds(index, rows, out.shape[1], out.shape[2])
        right = b[entries[i, 1]]
        wide = np.zeros((r1 - r0, c1 - c0), np.int64)
        _block_sums(a[entries[i, 0], r0:r1], right[c0:c1] if transposed else right[:, c0:c1], transposed, wide, scratch)
        out[i, r0:r1, c0:c1] = wide


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _matmul_blocks(
    a: np.ndarray,
    b: np.ndarray,
    entries: np.ndarray,
    transposed: bool,
    rows: int,
    out: np.ndarray,
    start: int,
    stop: int,
) -> None:
    """Blocks start to stop of the rounded results, to float32 `out`; the rest as `_sum_blocks`."""
    scratch = _scratch()
    for index in range(start, stop):
        i, r0, r1, c0, c1 = _block_bounds(index, rows, out.shape[1], out.shape[2])
        right = b[entries[i, 1]]
        wide = np.zeros((r1 - r0, c1 - c0), np.int64)
        _block_sums(a[entries[i, 0], r0:r1], right[c0:c1] if transposed else right[:, c0:c1], transposed, wide, scratch)
        for r in range(r1 - r0):
            source, target = wide[r], out[i, r0 + r, c0:c1]
            for c in range(target.size):
                target[c] = fixed_point_to_fp16(source[c])


def _checked(a: Tensor, b: Tensor) -> None:
    for name, x in (("a", a), ("b", b)):
        if x.dtype != torch.float32 or x.device.type != "cpu" or x.dim() < 2:
            raise ValueError(
                f"{name}: expected float32 on the CPU with two or more axes, got {x.dtype} {tuple(x.shape)}"
            )
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"contraction axes differ: {tuple(a.shape)} and {tuple(b.shape)}")


def _entries(batch: torch.Size, *operands: Tensor) -> np.ndarray:
    """Index of the matrix of each operand that belongs to each batch entry: int64 [batch, operands]."""
    columns = []
    for x in operands:
        own = x.shape[:-2]
        columns.append(torch.arange(own.numel()).reshape(own).expand(batch).reshape(-1))
    return torch.stack(columns, dim=1).numpy()


def _matrices(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().view(x.shape[:-2].numel(), *x.shape[-2:]).numpy()


def _run(kernel: Any, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Run a block kernel over finite operands [..., M, K] and [..., K, N]."""
    if b.shape[-1] < min(a.shape[-2], _COLUMNS):
        # The inner loop goes along the columns: let the longer side of the result be its columns.
        return _run_oriented(kernel, b.mT, a.mT, dtype).mT.contiguous()
    return _run_oriented(kernel, a, b, dtype)


def _run_oriented(kernel: Any, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    height, width = a.shape[-2], b.shape[-1]
    out = torch.empty((*batch, height, width), dtype=dtype)
    if out.numel() == 0:
        return out
    if b.dim() == 2 and a.dim() > 2:  # one right operand: all rows of the batch are rows of one product
        return _run_oriented(kernel, a.reshape(-1, a.shape[-1]), b, dtype).view(out.shape)
    transposed = not b.is_contiguous() and b.mT.is_contiguous()
    left, right = _matrices(a), _matrices(b.mT if transposed else b)
    results = out.view(batch.numel(), height, width).numpy()
    entries = _entries(batch, a, b)
    across = -(-width // _COLUMNS) * len(entries)
    rows = _ROWS
    while rows > 16 and across * -(-height // rows) < 2 * torch.get_num_threads():
        rows //= 2
    run_tasks(
        lambda start, stop: kernel(left, right, entries, transposed, rows, results, start, stop),
        across * -(-height // rows),
    )
    return out


def fixed_point_sums(a: Tensor, b: Tensor) -> Tensor:
    """Multiply by rules 1 to 4: the exact sums of the accumulator, before they are rounded.

    Args:
        a: float32 [..., M, K], finite, on the fp16 grid; any strides.
        b: float32 [..., K, N], likewise; the leading axes broadcast as in `torch.matmul`.

    Returns:
        int64 [..., M, N] in units of 2^-16. Exact for any operands up to K = 32767, and beyond as long as
        the sum of the magnitudes of the products stays below 2^47.

    Raises:
        ValueError: another dtype or device, fewer than two axes, or contraction axes that differ.
    """
    _checked(a, b)
    return _run(_sum_blocks, a, b, torch.int64)


def matmul_exact(a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices bit for bit as the engine does (rules 1 to 5 of the module).

    Infinite and NaN operands are outside what was measured. Result rows whose row of `a`, and columns whose
    column of `b`, holds one are computed by IEEE float32 and rounded by rule 5; all others stay exact.

    Source: ANEForge 0.4.0 figures (facts: bit-exact multiply-accumulate rule).

    Args:
        a: float32 [..., M, K] on the fp16 grid; any strides.
        b: float32 [..., K, N], likewise; the leading axes broadcast as in `torch.matmul`.

    Returns:
        Contiguous float32 [..., M, N] on the fp16 grid, at most 32752 in magnitude or infinite.

    Raises:
        ValueError: another dtype or device, fewer than two axes, or contraction axes that differ.
    """
    _checked(a, b)
    if math.isfinite(absmax(a)) and math.isfinite(absmax(b)):
        return _run(_matmul_blocks, a, b, torch.float32)
    finite_a, finite_b = a.nan_to_num(0.0, 0.0, 0.0), b.nan_to_num(0.0, 0.0, 0.0)
    ordinary = _run(_matmul_blocks, finite_a, finite_b, torch.float32)
    tainted = ~a.isfinite().all(-1)[..., :, None] | ~b.isfinite().all(-2)[..., None, :]
    return torch.where(tainted, matmul_fast(a, b), ordinary)


def matmul_fast(a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices in float32 and round by rule 5: the range and the fp16 rounding of the engine alone.

    Drops the product grid (rules 2 and 3) and the exact sum (rule 4), at the speed of `torch.matmul` or above it.

    Args:
        a: float32 [..., M, K] on the fp16 grid; any strides.
        b: float32 [..., K, N], likewise; the leading axes broadcast as in `torch.matmul`.

    Returns:
        Contiguous float32 [..., M, N] on the fp16 grid, at most 32752 in magnitude or infinite.

    Raises:
        ValueError: another dtype or device, fewer than two axes, or contraction axes that differ.
    """
    _checked(a, b)
    return matmul_finished(a, b, 1.0, None)[0]


def matmul_finished(
    a: Tensor, b: Tensor, carried: float, factor: float | None, into: Tensor | None = None
) -> tuple[Tensor, float]:
    """As :func:`matmul_fast`, of fp16 or fp32 operands, scaled before and after the rounding: :func:`amx.multiply`."""
    found = multiply(a, b, carried, factor, into)
    if found is not None:
        return found
    product = float32_matmul(a, b).contiguous()
    largest = finish_product_(product, factor, carried)
    return (product if into is None else into.copy_(product)), largest
