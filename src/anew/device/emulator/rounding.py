"""Rounding of results to fp16 as the engine does it.

Everywhere in the emulator a tensor is float32 whose values lie on the fp16 grid. The functions here bring
freshly computed float32, float64 or fixed-point values onto that grid. What IEEE makes NaN, as the difference of two
infinities, is zero on the engine (source: ane-guide, part 1, Numerics; M1).

The scalar rules are written as LLVM integer arithmetic on the bits of a float32. Every rule is a chain of
selects without branches, so LLVM vectorises the loops on any CPU.
"""

import functools
import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

__all__ = [
    "INF_BITS",
    "absmax",
    "apply",
    "elementwise_rule",
    "flat",
    "largest_of_bits",
    "magnitude_bits",
    "matmul_rule",
    "round_elementwise_",
    "round_fixed_point",
    "round_float64",
    "round_matmul_",
    "run_tasks",
]

_F32, _I32 = ir.FloatType(), ir.IntType(32)
_F64, _I64 = ir.DoubleType(), ir.IntType(64)

INF_BITS = 0x7F800000
_MIN_NORMAL_BITS = 0x38800000  # 2^-14, the smallest normal fp16
_ELEMENTWISE_LIMIT = 0x477FE000  # 65504
_MATMUL_LIMIT = 0x46FFE000  # 32752, the largest finite matmul result

_GRAIN = 1 << 20
"""Elements for which handing work to another thread costs less than it saves; chosen by ``python -m bench.step_time``
on two cores, where smaller tasks made a step slower."""


@functools.lru_cache(maxsize=2)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="anew-emulator")


if hasattr(os, "register_at_fork"):  # a forked child inherits the executor but not its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def run_tasks(task: Callable[[int, int], Any], count: int, grain: int = 1) -> list[Any]:
    """Return `task(start, stop)` for ranges that cover `range(count)`, run on as many threads as torch uses.

    Ranges hold at least `grain` items. The calling thread takes the first one. `task` must release the GIL to
    gain anything.
    """
    pieces = min(count // grain, torch.get_num_threads())
    if pieces <= 1:
        return [task(0, count)]
    bounds = [count * i // pieces for i in range(pieces + 1)]
    others = [_pool(pieces).submit(task, *span) for span in itertools.pairwise(bounds[1:])]
    return [task(bounds[0], bounds[1]), *(other.result() for other in others)]


def _intrinsic_function(module: ir.Module, name: str, kind: ir.Type, operands: int) -> ir.Function:
    return module.declare_intrinsic(name, [kind], ir.FunctionType(kind, [kind] * operands))


def _nearest_bits(builder: ir.IRBuilder, magnitude: ir.Value, limit: int) -> ir.Value:
    """Magnitude bits of a float32 rounded to 11 significant bits, ties away; above `limit`: inf; NaN: zero."""
    inf = _I32(INF_BITS)
    rounded = builder.and_(builder.add(magnitude, _I32(0x1000)), _I32(0xFFFFE000))
    rounded = builder.select(builder.icmp_unsigned(">", rounded, _I32(limit)), inf, rounded)
    return builder.select(builder.icmp_unsigned(">", magnitude, inf), _I32(0), rounded)


def _rounding_rule(limit: int, floor_subnormals: bool) -> Any:
    """Scalar rule float32 -> float32 on the fp16 grid, as a numba intrinsic."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        bits = builder.bitcast(args[0], _I32)
        sign = builder.and_(bits, _I32(0x80000000))
        magnitude = builder.and_(bits, _I32(0x7FFFFFFF))
        normal = builder.bitcast(builder.or_(sign, _nearest_bits(builder, magnitude, limit)), _F32)
        scaled = builder.fmul(args[0], _F32(2.0**24))
        if not floor_subnormals:
            # Ties away is the truncated sum with one half. The half is the float32 just below: with 0.5 itself
            # the sum 1 - 2^-25 of the value just below 0.5 rounds up to one. A tie still reaches the integer.
            half = builder.bitcast(builder.or_(sign, _I32(0x3EFFFFFF)), _F32)
            scaled = builder.fadd(scaled, half)
        whole = _intrinsic_function(builder.module, "llvm.floor" if floor_subnormals else "llvm.trunc", _F32, 1)
        subnormal = builder.fmul(builder.call(whole, [scaled]), _F32(2.0**-24))
        small = builder.icmp_unsigned("<", magnitude, _I32(_MIN_NORMAL_BITS))
        return builder.select(small, subnormal, normal)

    @intrinsic
    def rule(typing_context: Any, value: Any) -> Any:
        return types.float32(types.float32), emit

    return rule


elementwise_rule = _rounding_rule(_ELEMENTWISE_LIMIT, floor_subnormals=True)
matmul_rule = _rounding_rule(_MATMUL_LIMIT, floor_subnormals=False)


def _bits_function(result: Any, kind: Any, emit: Callable[[ir.IRBuilder, ir.Value], ir.Value]) -> Any:
    @intrinsic
    def function(typing_context: Any, value: Any) -> Any:
        return result(kind), lambda context, builder, signature, args: emit(builder, args[0])

    return function


# Scalar functions on the bits of a float32, for numba kernels.
magnitude_bits = _bits_function(types.int32, types.float32, lambda b, x: b.and_(b.bitcast(x, _I32), _I32(0x7FFFFFFF)))
float_of_bits = _bits_function(types.float32, types.int32, lambda b, x: b.bitcast(x, _F32))
one_ulp_up = _bits_function(  # the next value away from zero
    types.float32, types.float32, lambda b, x: b.bitcast(b.add(b.bitcast(x, _I32), _I32(1)), _F32)
)
power_of_two_part = _bits_function(  # 2^floor(log2 |x|) of a normal value
    types.float32, types.float32, lambda b, x: b.bitcast(b.and_(b.bitcast(x, _I32), _I32(INF_BITS)), _F32)
)


def _emit_round_double(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Float64 to the nearest multiple of the fp16 unit in the last place, ties away, unlimited range."""
    bits = builder.bitcast(x, _I64)
    nearest = builder.and_(builder.add(bits, _I64(1 << 41)), _I64(-(1 << 42)))
    return builder.bitcast(nearest, _F64)


round_significand = _bits_function(types.float64, types.float64, _emit_round_double)
"""Round a finite float64 to 11 significant bits, ties away (inside numba kernels only)."""


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _elementwise_slice(x: np.ndarray) -> None:
    for i in range(x.size):
        x[i] = elementwise_rule(x[i])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _matmul_slice(x: np.ndarray) -> None:
    for i in range(x.size):
        x[i] = matmul_rule(x[i])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _absmax_slice(x: np.ndarray) -> np.int32:
    largest = np.int32(0)
    for i in range(x.size):
        largest = max(largest, magnitude_bits(x[i]))
    return largest


@numba.njit(inline="always")
def fixed_point_to_fp16(units: np.int64) -> np.float32:
    """Rule 5 of the multiply-accumulate for one sum in units of 2^-16 (inside numba kernels only).

    Float64 holds every sum below 2^53 exactly, and larger ones overflow anyway. The fp16 grid is finer than
    2^-16 wherever the sum has fewer than 11 bits, so there is no subnormal case.
    """
    value = round_significand(np.float64(units))
    if value >= 2.0**31:
        value = np.inf
    if value <= -(2.0**31):
        value = -np.inf
    return np.float32(value * 2.0**-16)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _fixed_point_slice(units: np.ndarray, out: np.ndarray) -> None:
    for i in range(units.size):
        out[i] = fixed_point_to_fp16(units[i])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _float64_slice(x: np.ndarray, out: np.ndarray) -> None:
    for i in range(x.size):
        magnitude = abs(x[i])
        scaled = magnitude * 2.0**24
        whole = np.floor(scaled)
        subnormal = (whole + np.floor((scaled - whole) * 2.0)) * 2.0**-24
        value = subnormal if magnitude < 2.0**-14 else round_significand(magnitude)
        value = np.inf if value > 65504.0 else value
        value = 0.0 if magnitude != magnitude else value
        out[i] = np.float32(np.copysign(value, x[i]))


def flat(x: Tensor, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Return a contiguous CPU tensor as a flat numpy view; raises ValueError for any other."""
    if x.dtype != dtype or x.device.type != "cpu" or not x.is_contiguous():
        raise ValueError(f"expected a contiguous {dtype} tensor on the CPU, got {x.dtype} on {x.device}")
    return x.detach().view(-1).numpy()


def apply(kernel: Callable[..., Any], *arrays: np.ndarray) -> list[Any]:
    """Run a kernel over matching slices of arrays, along their first axis.

    In a whole flat array LLVM vectorises, in a range it does not.
    """
    count, size = len(arrays[0]), max(arrays[0].size, 1)
    return run_tasks(
        lambda start, stop: kernel(*(a[start:stop] for a in arrays)), count, max(_GRAIN * count // size, 1)
    )


def round_elementwise_(x: Tensor) -> Tensor:
    """Round the result of an elementwise operation to fp16, in place.

    Nearest with ties away from zero; magnitudes that round above 65504 become infinite; subnormal results
    (below 2^-14) go toward -infinity on the 2^-24 grid; NaN becomes zero.

    Source: one published ANEForge 0.4.0 figure, the Jacobi iteration (facts: elementwise rounding). The
    rule for subnormals is a hypothesis that fits thirteen elements of that figure.

    Args:
        x: float32, contiguous, on the CPU, any shape.

    Returns:
        `x` itself.

    Raises:
        ValueError: another dtype, device or layout.
    """
    apply(_elementwise_slice, flat(x, torch.float32))
    return x


def round_matmul_(x: Tensor) -> Tensor:
    """Round the result of a multiply-accumulate to fp16, in place.

    Nearest with ties away from zero, on the 2^-24 grid below 2^-14; a rounded magnitude of 32768 or more
    becomes infinite, so 32752 is the largest finite result. NaN becomes zero.

    Source: ANEForge 0.4.0 figures (facts: bit-exact multiply-accumulate rule 5, numeric cliffs).

    Args:
        x: float32, contiguous, on the CPU, any shape.

    Returns:
        `x` itself.

    Raises:
        ValueError: another dtype, device or layout.
    """
    apply(_matmul_slice, flat(x, torch.float32))
    return x


def round_fixed_point(units: Tensor) -> Tensor:
    """Round exact multiply-accumulate sums to fp16 by the rule of `round_matmul_`, in one rounding.

    Args:
        units: int64 sums in units of 2^-16, contiguous, on the CPU, any shape.

    Returns:
        float32 tensor of the same shape on the fp16 grid.

    Raises:
        ValueError: another dtype, device or layout.
    """
    out = torch.empty(units.shape, dtype=torch.float32)
    apply(_fixed_point_slice, flat(units, torch.int64), flat(out, torch.float32))
    return out


def round_float64(x: Tensor) -> Tensor:
    """Round float64 values to fp16, nearest with ties away from zero, in one rounding.

    Float64 holds the sum of any two or three fp16 values exactly and float32 does not: rounding such a sum
    to float32 first can turn a value next to a tie into the tie. Subnormals are rounded to nearest, ties
    away, on the 2^-24 grid; magnitudes that round above 65504 become infinite; NaN becomes zero.

    Args:
        x: float64, contiguous, on the CPU, any shape.

    Returns:
        float32 tensor of the same shape on the fp16 grid.

    Raises:
        ValueError: another dtype, device or layout.
    """
    out = torch.empty(x.shape, dtype=torch.float32)
    apply(_float64_slice, flat(x, torch.float64), flat(out, torch.float32))
    return out


def absmax(x: Tensor) -> float:
    """Return the largest magnitude of a tensor; inf if any value is infinite or NaN, 0 if it is empty.

    Args:
        x: float32, on the CPU, any shape; one pass over a contiguous tensor, a copy of another.

    Raises:
        ValueError: another dtype or device.
    """
    return largest_of_bits(apply(_absmax_slice, flat(x.contiguous())))


def largest_of_bits(bits: list[Any]) -> float:
    """Return the largest of magnitudes given as float32 bits; inf if one is infinite or NaN, 0 if there is none."""
    largest = max(bits, default=0)
    return math.inf if largest >= INF_BITS else float(np.int32(largest).view(np.float32))
