"""Error figures measured on Apple silicon and published with ANEForge 0.4.0, and what the emulator makes of them.

A figure is ||output - reference|| / ||reference|| for seeded operands, as a float64: a fingerprint of every
element of the output. The emulator computes the output, float64 the reference.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from anew.device.emulator.conv import conv2d
from anew.device.emulator.mac import matmul_exact
from anew.device.emulator.rounding import round_elementwise_

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Figure:
    """One published figure.

    Attributes:
        name: the workload.
        chips: the chips that share the published value.
        published: the value.
        tolerance: relative deviation within which the emulator counts as equal.
        compute: runs the emulator and returns its value.
    """

    name: str
    chips: str
    published: float
    tolerance: float
    compute: Callable[[], float]


_EXACT = 1e-12
"""Float64 noise of the reference; two different outputs differ by far more."""
_JACOBI = 1e-7
"""The published reference itself was computed in float32."""

_SATURATION = "M1, M1 Max, M2 Pro, M2 Max, M4, M4 Pro, M4 Max, M5, M5 Pro, M6"
_WATT = "M1, M2 Pro, M5 Pro"
_DIRECT = "M1, M1 Max, M2 Max, M4 Pro"

# (rows, depth, columns) -> published
_WATT_GEMM = {
    (64, 256, 256): 0.0012522854527169441,
    (128, 1024, 1024): 0.005521493491066958,
    (256, 4096, 4096): 0.027275490149715163,
}
# n -> published, for n x n operands of which the first 256 rows were compared
_SQUARE_GEMM = {512: 0.0025780039702379184, 1024: 0.005528352999597525, 2048: 0.012131920427695623}
_LARGE_GEMM = {4096: 0.027237621125542212, 6144: 0.043990474210234866, 8192: 0.061638068725750665}
# (depth, columns) -> published
_GEMV = {
    (512, 512): 0.0024445968323742575,
    (1024, 1024): 0.005398935782845327,
    (2048, 2048): 0.01207323982683335,
    (4096, 4096): 0.026957951213090588,
    (6144, 6144): 0.04428429985703587,
    (8192, 8192): 0.06303353241862372,
    (2048, 8192): 0.012062673496956096,
}
# (channels, batch, winograd) -> chips, published
_CONV = {
    (64, 8, False): (_DIRECT, 0.0003671660721200675),
    (128, 8, False): (_DIRECT, 0.00037520404231831836),
    (64, 16, False): ("M4", 0.00036713452579315676),
    (128, 16, False): ("M4", 0.000373510899298669),
    (64, 8, True): ("M5", 0.0005162338465671137),
    (128, 8, True): ("M5", 0.0005214500415248461),
    (256, 4, True): ("M5", 0.0005323365234218932),
    (64, 16, True): ("M5 Pro", 0.0005134171098867606),
}
# winograd -> chips, published
_CONV_RELU = {
    False: ("M1, M2 Pro", 0.00036636558584241826),
    True: ("M5 Pro", 0.0005102488034377338),
}


def mac_figures() -> Iterator[Figure]:
    """The figures of the multiply-accumulate array that take a minute together."""
    for (rows, depth, columns), published in _WATT_GEMM.items():
        run = functools.partial(_gemm, rows, depth, columns, rows)
        yield Figure(f"gemm {rows}x{depth}x{columns}", _WATT, published, _EXACT, run)
    for n, published in _SQUARE_GEMM.items():
        yield Figure(f"gemm {n}", _SATURATION, published, _EXACT, functools.partial(_gemm, n, n, n, 256))
    for (depth, columns), published in _GEMV.items():
        yield Figure(f"gemv {depth}x{columns}", "M5 Pro", published, _EXACT, functools.partial(_gemv, depth, columns))
    yield Figure("dft as matmul 1024", _WATT, 0.0003501405909518638, _EXACT, _dft)
    for (channels, batch, winograd), (chips, published) in _CONV.items():
        run = functools.partial(_conv, channels, batch, winograd)
        yield Figure(f"conv 3x3 {_form(winograd)} C={channels} B={batch}", chips, published, _EXACT, run)
    for winograd, (chips, published) in _CONV_RELU.items():
        run = functools.partial(_conv_relu, winograd)
        yield Figure(f"conv+relu {_form(winograd)} C=16 to 64", chips, published, _EXACT, run)


def large_gemm_figures() -> Iterator[Figure]:
    """The three largest products: 31 billion multiply-accumulates, over a gigabyte of operands."""
    for n, published in _LARGE_GEMM.items():
        yield Figure(f"gemm {n}", _SATURATION, published, _EXACT, functools.partial(_gemm, n, n, n, 256))


def elementwise_figures() -> Iterator[Figure]:
    """The one figure that shows how elementwise results are rounded."""
    yield Figure("jacobi 25 iterations 512", "M1, M2 Pro", 0.00039985988472345587, _JACOBI, _jacobi)


def compare(figures: Iterator[Figure]) -> Iterator[tuple[str, float, float]]:
    """Yield (name, value of the model, published value) of each figure, computed one at a time."""
    for figure in figures:
        yield figure.name, figure.compute(), figure.published


def _form(winograd: bool) -> str:
    return "F(2,3)" if winograd else "direct"


def _half(x: Array) -> Tensor:
    """Operands as the host hands them over: rounded to fp16 to nearest even."""
    return torch.from_numpy(np.asarray(x).astype(np.float16).astype(np.float32))


def _error(output: Tensor, reference: Array) -> float:
    flat = reference.ravel()
    return float(np.linalg.norm(output.double().numpy().ravel() - flat) / np.linalg.norm(flat))


def _linear_error(x: Array, w: Array) -> float:
    output = matmul_exact(_half(x), _half(w).T)
    return _error(output, x.astype(np.float64) @ w.astype(np.float64).T)


def _gemm(rows: int, depth: int, columns: int, compared: int) -> float:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, depth)).astype(np.float32)
    w = rng.standard_normal((columns, depth)).astype(np.float32)
    root = np.float32(np.sqrt(depth))
    return _linear_error(x[:compared] / root, w / root)


def _gemv(depth: int, columns: int) -> float:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, depth)).astype(np.float32)
    w = rng.standard_normal((columns, depth)).astype(np.float32)
    root = np.float64(np.sqrt(depth))
    return _linear_error(x / root, w / root)


def _dft() -> float:
    n = 1024
    x = np.random.default_rng(2).standard_normal((1, n))
    angles = -2 * np.pi * np.outer(np.arange(n), np.arange(n)) / n
    return (_linear_error(x, np.cos(angles)) + _linear_error(x, np.sin(angles))) / 2


def _kernel(rng: np.random.Generator, outputs: int, inputs: int) -> Array:
    return rng.standard_normal((outputs, inputs, 3, 3)).astype(np.float32) * np.sqrt(2.0 / (inputs * 9))


def _conv_pair(x: Array, w: Array, winograd: bool) -> tuple[Tensor, Array]:
    """Output of the emulator and of float64 for a 3x3 kernel with one zero on each side."""
    output = conv2d(_half(x), _half(w), pad=(1, 1, 1, 1), winograd=winograd)
    wide_x, wide_w = (torch.from_numpy(operand.astype(np.float64)) for operand in (x, w))
    return output, F.conv2d(wide_x, wide_w, padding=1).numpy()


def _conv(channels: int, batch: int, winograd: bool) -> float:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((batch, channels, 64, 64)).astype(np.float32)[:1]
    return _error(*_conv_pair(x, _kernel(rng, channels, channels), winograd))


def _conv_relu(winograd: bool) -> float:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 16, 32, 32)).astype(np.float32)
    output, reference = _conv_pair(x, _kernel(rng, 64, 16), winograd)
    return _error(output.relu(), np.maximum(reference, 0))


def _jacobi() -> float:
    """25 iterations of x = (b - R x) / d for a diagonally dominant matrix R + diag(d)."""
    n = 512
    rng = np.random.default_rng(8)
    square = rng.standard_normal((n, n)).astype(np.float32)
    matrix = ((square @ square.T) / n + n * np.eye(n, dtype=np.float32)).astype(np.float32)
    b = rng.standard_normal(n).astype(np.float32)
    diagonal = np.diag(matrix).copy()
    rest = matrix - np.diag(diagonal)
    inverse, constant, weights = _half(1.0 / diagonal), _half(b), _half(rest).T
    reference, x = np.zeros(n), torch.zeros(1, n)
    for _ in range(25):
        reference = (b.astype(np.float64) - rest.astype(np.float64) @ reference) / diagonal.astype(np.float64)
        difference = round_elementwise_(constant - matmul_exact(x, weights))
        x = round_elementwise_(difference * inverse)
    return _error(x, reference)
