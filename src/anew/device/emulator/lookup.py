"""The engine's function tables: exponentials, logarithm, roots, reciprocal, erf and the activations that have one.

Class: calibrated. Known of a table (source: ane-guide, part 1, Numerics; M1): it is a line between each two of 33 knots
that stand at equal distances over the function's own domain, and the function's asymptote beyond. With the domain that
is published for sigmoid that alone gives the published error, so the knots lie on the function. For tanh, erf, gelu and
silu the domain is fitted to the published error. Functions over all of fp16 have no domain but an exponent: their knots
repeat in every octave (of the argument, or for exp of the result), and how many there are is fitted. How far each
error is from the published one: ``python -m evidence functions``, docs/arithmetic.md.

Published values at odd places are kept (same source unless named): log(0) is -45440, log of infinity 0, roots and
logarithms of negative numbers 0, and the sign of a zero is lost. gelu(0) is -0.000754 (ANEForge 0.4.0, FAQ) or
-0.000543: the larger is taken. silu(0) is -0.001259. softplus, in which the engine takes the exponential in fp16, is 0
from where that overflows (ANEForge 0.4.0 _compile.py), and softsign of infinity is 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numba
import numpy as np
import torch
from numba import prange
from numpy.typing import NDArray
from torch import Tensor

from anew.device.emulator.rounding import elementwise_rule, flat, round_elementwise_, sign_and_magnitude
from anew.device.team import kernel
from anew.device.transfer import magnitude_bits
from anew.mil import OPS

__all__ = ["PLACES", "TABLES", "Table", "function_table", "gather", "look_up", "slot", "tabulate"]

Table = NDArray[np.float32]
"""The value of a function at every fp16 number, in the order of `slot`."""

_BLOCK = 1024
"""Elements looked up together, so that their places stay in the nearest cache."""
_SHIFT = 13
"""The float32 of an fp16 number holds nothing in these lowest bits."""
_FIRST = ((127 - 24) << 10) - 1
"""Place of zero: one before the smallest magnitude, 2^-24."""
_SIGN = ((127 + 16) << 10) - _FIRST + 1
"""Places of one sign: zero, every finite magnitude, infinity."""


@numba.njit(inline="always")
def slot(x: np.float32) -> np.int32:
    """The place of an fp16 number in a table (inside numba kernels only)."""
    place = min(max(magnitude_bits(x) >> _SHIFT, _FIRST), _FIRST + _SIGN - 1) - _FIRST
    return place + _SIGN if sign_and_magnitude(x) < 0 else place


@numba.njit(inline="always")
def gather(x: np.ndarray, shift: np.float32, table: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
    """The function of ``x - shift``, rounded (inside numba kernels only); `places` is room for as many numbers.

    In two loops, as LLVM vectorises the arithmetic of the first and not the memory accesses of the second.
    """
    for i in range(x.size):
        places[i] = slot(elementwise_rule(x[i] - shift))
    for i in range(x.size):
        out[i] = table[places[i]]


@kernel
def _look_up(x: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    for block in prange(-(-x.size // _BLOCK)):
        places, start = np.empty(_BLOCK, np.int32), block * _BLOCK
        gather(x[start : start + _BLOCK], np.float32(0.0), table, places, out[start : start + _BLOCK])


def look_up(x: Tensor, table: Table) -> Tensor:
    """Return a function of every element of `x`, float32 on the fp16 grid, as contiguous float32 on that grid."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _look_up(flat(x), table, flat(out))
    return out


@functools.cache
def function_table(kind: str, mode: str | None = None, epsilon: float = 0.0) -> Table:
    """Return the table of a MIL operation, made once.

    Args:
        kind: a key of `TABLES`.
        mode: of gelu.
        epsilon: added to the argument first, in fp16 and without subnormals, of which the engine keeps none (facts:
            constraints beyond Orion's, eps).
    """
    meaning = OPS[kind].meaning
    extra = ({} if mode is None else {"mode": mode}) | ({"epsilon": 0.0} if kind in _WITH_EPSILON else {})
    table = _rounded(TABLES[kind](lambda x: meaning(torch.from_numpy(x), **extra).numpy()))
    table[_SIGN] = table[0]
    added = float(np.float16(epsilon))
    if abs(added) < 2.0**-14:
        return table
    return look_up(torch.from_numpy(_rounded(_ARGUMENTS + added)), table).numpy()


def tabulate(function: Callable[[Tensor], Tensor]) -> Table:
    """Return the table of a function of float32 tensors on the fp16 grid, computed at every fp16 number."""
    x = torch.from_numpy(_ARGUMENTS.astype(np.float32))
    x[_SIGN - 1], x[-1] = math.inf, -math.inf
    table: Table = function(x).contiguous().numpy()
    return table


Function = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _arguments() -> NDArray[np.float64]:
    bits = np.arange(_FIRST, _FIRST + _SIGN, dtype=np.int32) << _SHIFT
    magnitudes = bits.view(np.float32).astype(np.float64)
    magnitudes[0] = 0.0
    return np.concatenate([magnitudes, -magnitudes])


_ARGUMENTS = _arguments()
PLACES = len(_ARGUMENTS)
_EXP_LIMIT = math.log(65504)
_WITH_EPSILON = ("rsqrt", "inverse", "log")


def _rounded(values: NDArray[np.float64]) -> Table:
    result: Table = round_elementwise_(torch.from_numpy(values.astype(np.float32))).numpy()
    return result


def _saturating(
    f: Function, low: float, high: float, segments: int, beyond: Function, origin: float | None = None
) -> NDArray[np.float64]:
    """Lines between equidistant knots, and the asymptote `beyond` them; `origin` is the value at the knot 0."""
    knots = np.linspace(low, high, segments + 1)
    values = f(knots)
    if origin is not None:
        values[knots == 0.0] = origin
    x = _ARGUMENTS
    return np.where((x < low) | (x > high), beyond(x), np.interp(x, knots, values))


def _exponential(f: Function, octave: float, segments: int) -> NDArray[np.float64]:
    """Lines between knots that repeat in every octave of the result, to which ``octave`` of the argument is the way."""
    low, high = -25, 16  # what fp16 holds, as powers of two
    places = (high - low) * segments
    return _saturating(f, low * octave, high * octave, places, lambda x: np.where(x > 0, np.inf, 0.0))


def _by_octave(
    f: Function, octaves: int, segments: int, at_zero: float, at_infinity: float, odd: bool = False
) -> NDArray[np.float64]:
    """Lines between knots that repeat every few octaves of a positive argument; negative ones mirrored, or 0.

    Pairs of octaves run from 1/2 to 2: of the two ways that one gives the published error of layer_norm as well.
    """
    parts = [np.linspace(1, 2**octaves, segments, endpoint=False) * 2.0**e for e in range(-25, 17, octaves)]
    knots = np.concatenate(parts)
    positive = np.interp(_ARGUMENTS[:_SIGN], knots, f(knots))
    positive[0], positive[-1] = at_zero, at_infinity
    return np.concatenate([positive, -positive if odd else np.zeros(_SIGN)])


def _step(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(x > 0, 1.0, 0.0)


def _ramp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(x, 0.0)


TABLES: dict[str, Callable[[Function], NDArray[np.float64]]] = {
    "sigmoid": lambda f: _saturating(f, -9.938, 8.320, 32, _step),  # the domain is published
    "tanh": lambda f: _saturating(f, -4.0, 4.0, 64, np.sign),  # 32 segments for each sign
    "erf": lambda f: _saturating(f, -2.75, 2.75, 64, np.sign),
    "gelu": lambda f: _saturating(f, -2.9, 2.9, 32, _ramp, origin=-0.000754),
    "silu": lambda f: _saturating(f, -6.78, 6.78, 32, _ramp, origin=-0.001259),
    "softplus": lambda f: _saturating(f, -_EXP_LIMIT, _EXP_LIMIT, 115, np.zeros_like),
    "softsign": lambda f: _by_octave(f, 1, 6, 0.0, 0.0, odd=True),
    "exp": lambda f: _exponential(f, math.log(2), 10),
    "exp2": lambda f: _exponential(f, 1.0, 10),
    "log": lambda f: _by_octave(f, 1, 12, -45440.0, 0.0),
    "sqrt": lambda f: _by_octave(f, 2, 15, 0.0, np.inf),
    "rsqrt": lambda f: _by_octave(f, 2, 17, np.inf, 0.0),
    "inverse": lambda f: _by_octave(f, 1, 24, np.inf, 0.0, odd=True),
}
"""By MIL operation: the function's values at every argument, before they are rounded."""
