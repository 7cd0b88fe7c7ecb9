"""MIL operations, one definition each: parameters, type rule, reference meaning, cost facts."""

from anew.mil.ops import elementwise, matmul, movement, reduction

__all__ = ["elementwise", "matmul", "movement", "reduction"]
