"""Rounding of results to fp16 as the engine does it.

Everywhere in the emulator a tensor is float32 whose values lie on the fp16 grid. The functions here bring
freshly computed float32, float64 or fixed-point values onto that grid. What IEEE makes NaN, as the difference of two
infinities, is zero on the engine (source: ane-guide, part 1, Numerics; M1).

The scalar rules are written as LLVM integer arithmetic on the bits of a float32. Every rule is a chain of
selects without branches, so LLVM vectorises the loops on any CPU.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from torch import Tensor

from anew.device.team import kernel
from anew.device.transfer import INF_BITS, float_of_half, float_of_largest, magnitude_bits

__all__ = [
    "absmax",
    "elementwise_rule",
    "flat",
    "matmul_rule",
    "round_elementwise_",
    "round_fixed_point",
    "round_float64",
    "round_matmul_",
    "sign_and_magnitude",
    "widen",
]

_F32, _I32 = ir.FloatType(), ir.IntType(32)
_F64, _I64 = ir.DoubleType(), ir.IntType(64)

_MIN_NORMAL_BITS = 0x38800000  # 2^-14, the smallest normal fp16
_ELEMENTWISE_LIMIT = 0x477FE000  # 65504
_MATMUL_LIMIT = 0x46FFE000  # 32752, the largest finite matmul result


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
sign_and_magnitude = _bits_function(types.int32, types.float32, lambda b, x: b.bitcast(x, _I32))  # negative also of -0
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


@kernel
def _elementwise(x: np.ndarray) -> None:
    for i in prange(x.size):
        x[i] = elementwise_rule(x[i])


@kernel
def _matmul(x: np.ndarray) -> None:
    for i in prange(x.size):
        x[i] = matmul_rule(x[i])


@kernel
def _absmax(x: np.ndarray) -> np.int32:
    largest = np.int32(0)
    for i in prange(x.size):
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


@kernel
def _fixed_point(units: np.ndarray, out: np.ndarray) -> None:
    for i in prange(units.size):
        out[i] = fixed_point_to_fp16(units[i])


@kernel
def _float64(x: np.ndarray, out: np.ndarray) -> None:
    for i in prange(x.size):
        magnitude = abs(x[i])
        scaled = magnitude * 2.0**24
        whole = np.floor(scaled)
        subnormal = (whole + np.floor((scaled - whole) * 2.0)) * 2.0**-24
        value = subnormal if magnitude < 2.0**-14 else round_significand(magnitude)
        value = np.inf if value > 65504.0 else value
        value = 0.0 if magnitude != magnitude else value
        out[i] = np.float32(np.copysign(value, x[i]))


@kernel
def _widen(bits: np.ndarray, out: np.ndarray) -> None:
    for i in prange(bits.size):
        x = float_of_half(bits[i])
        out[i] = x if x == x else np.float32(np.inf)


def widen(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Return an fp16 tensor of any strides as contiguous float32, in ``out`` or fresh; a NaN becomes +infinity."""
    out = torch.empty(x.shape) if out is None else out
    _widen(flat(x.contiguous().view(torch.int16), torch.int16), flat(out))
    return out


def flat(x: Tensor, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Return a contiguous CPU tensor as a flat numpy view; raises ValueError for any other."""
    if x.dtype != dtype or x.device.type != "cpu" or not x.is_contiguous():
        raise ValueError(f"expected a contiguous {dtype} tensor on the CPU, got {x.dtype} on {x.device}")
    return x.detach().numpy().reshape(-1)


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
    _elementwise(flat(x, torch.float32))
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
    _matmul(flat(x, torch.float32))
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
    _fixed_point(flat(units, torch.int64), flat(out, torch.float32))
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
    _float64(flat(x, torch.float64), flat(out, torch.float32))
    return out


def absmax(x: Tensor) -> float:
    """Return the largest magnitude of a tensor; inf if any value is infinite or NaN, 0 if it is empty.

    Args:
        x: float32, on the CPU, any shape; one pass over a contiguous tensor, a copy of another.

    Raises:
        ValueError: another dtype or device.
    """
    return float_of_largest(_absmax(flat(x.contiguous())))
