"""From ATen operations to MIL operations: one function an operation, by kind in one file each."""

from anew.compiler import custom_ops  # noqa: F401  (registers torch.ops.anew)
from anew.compiler.lowering import elementwise, matmul, movement, reduction  # noqa: F401  (fill the table)
from anew.compiler.lowering.table import TABLE, Lowering, NotLowered, shape_of

__all__ = ["TABLE", "Lowering", "NotLowered", "shape_of"]
