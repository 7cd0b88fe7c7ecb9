"""MIL operations, one definition each: parameters, type rule, reference meaning, cost facts."""

from anew.mil.ops import (
    activations,
    attention,
    axes,
    constexpr,
    elementwise,
    matmul,
    movement,
    normalization,
    quantization,
    reduction,
    slicing,
)

__all__ = [
    "activations",
    "attention",
    "axes",
    "constexpr",
    "elementwise",
    "matmul",
    "movement",
    "normalization",
    "quantization",
    "reduction",
    "slicing",
]
