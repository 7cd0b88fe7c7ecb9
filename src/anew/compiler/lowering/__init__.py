"""From ATen operations to MIL operations: one function an operation, by kind in one file each."""

from anew.compiler import custom_ops  # noqa: F401  (registers torch.ops.anew)
from anew.compiler.lowering import (  # noqa: F401  (fill the table)
    activations,
    comparison,
    convolution,
    elementwise,
    matmul,
    movement,
    normalization,
    pooling,
    reduction,
)
from anew.compiler.lowering.table import TABLE, Lowering, NotLowered, shape_of

__all__ = ["TABLE", "Lowering", "NotLowered", "shape_of"]
