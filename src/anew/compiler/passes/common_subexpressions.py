"""Compute equal operations once. Capture repeats views and casts freely; each would cost the engine a copy."""

from __future__ import annotations

from anew.compiler.passes.eliminate_dead import eliminate_dead
from anew.compiler.passes.rewriter import Rewriter
from anew.mil import Function, Value
from anew.mil.program import Operand


def common_subexpressions(function: Function) -> Function:
    """Return the function with equal operations merged."""
    new = Rewriter(function)
    known: dict[tuple[object, ...], Value] = {}
    for op in function.ops:
        if op.kind == "const":
            new.copy(op)  # the builder shares equal constants
            continue
        operands = tuple((name, _key(new, operand)) for name, operand in op.inputs.items())
        key = (op.kind, operands)
        if key not in known:
            known[key] = new.copy(op)
        new.values[op.output] = known[key]
    return eliminate_dead(new.finish([new[v] for v in function.outputs]))


def _key(new: Rewriter, operand: Operand) -> object:
    return tuple(new[v] for v in operand) if isinstance(operand, tuple) else new[operand]
