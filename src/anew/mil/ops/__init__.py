"""MIL operations, one definition each: parameters, type rule, reference meaning, cost facts."""

from anew.mil.ops import (
    activations,
    attention,
    axes,
    comparison,
    constexpr,
    elementwise,
    matmul,
    movement,
    normalization,
    pooling,
    quantization,
    reduction,
    slicing,
)

__all__ = [
    "activations",
    "attention",
    "axes",
    "comparison",
    "constexpr",
    "elementwise",
    "matmul",
    "movement",
    "normalization",
    "pooling",
    "quantization",
    "reduction",
    "slicing",
]
