"""Drop operations whose result nobody reads. Ports stay as they are."""

from __future__ import annotations

from anew.compiler.passes.rewriter import Rewriter
from anew.mil import Function, Value


def eliminate_dead(function: Function) -> Function:
    """Return the function without dead operations."""
    live: set[Value] = set(function.outputs)
    for op in reversed(function.ops):
        if not live.isdisjoint(op.outputs):
            live.update(op.operands())
    new = Rewriter(function)
    for op in function.ops:
        if not live.isdisjoint(op.outputs):
            new.copy(op)
    return new.finish([new[v] for v in function.outputs])
