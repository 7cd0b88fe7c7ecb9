"""Reshape results instead of operands, so that a reshape meets the next one and both become one, or none.

Autograd writes a linear layer of [batch, length, features] as a product of two axes between two reshapes. Arithmetic
between two such layers then needs none of them, and is in one piece with the products beside it.
"""

from __future__ import annotations

from typing import Any

from anew.compiler.passes.rewriter import Rewriter, uses_of
from anew.mil import Function, Op, Value, lookup

ELEMENTWISE = ("elementwise", "lookup")


def sink_reshapes(function: Function) -> Function:
    """Return the function with reshapes behind elementwise operations instead of before, and merged.

    An operation moves if all of its operands are numbers, or reshapes from one shape to another that nothing else
    reads. Reshapes that nobody reads any more are left in.
    """
    new, uses, outputs = Rewriter(function), uses_of(function), set(function.outputs)
    sources: dict[Value, Value] = {}  # what a reshape of the new function reshapes

    def source_of(value: Value) -> Value:
        return sources.get(new[value], new[value])

    def reshaped(source: Value, op: Op) -> None:
        shape = op.output.shape
        port = source in new.builder.inputs and op.output in outputs  # a port is not both
        if source.shape == shape and not port:
            new.values[op.output] = source
        else:
            new.values[op.output] = result = new.builder.op("reshape", x=source, shape=shape)
            sources[result] = source

    for op in function.ops:
        if op.kind == "reshape":
            (x,) = op.tensors()
            reshaped(source_of(x), op)
            continue
        moving = _moving(op)
        alone = all(value not in outputs and uses[value] == [op] * len(uses[value]) for value in moving)
        shapes = {source_of(value).shape for value in moving}
        if not alone or len(shapes) != 1 or any(new[value] not in sources for value in moving):
            new.copy(op)
            continue
        operands: dict[str, Any] = {
            name: source_of(v) if v in moving else new[v] for name, v in op.inputs.items() if isinstance(v, Value)
        }
        reshaped(new.builder.op(op.kind, **operands), op)
    return new.finish([new[v] for v in function.outputs])


def _moving(op: Op) -> list[Value]:
    """The operands of an elementwise operation that have its result's shape; none if others are more than numbers."""
    if op.constant or lookup(op.kind).family not in ELEMENTWISE or op.output.type.dtype != "fp16":
        return []
    tensors = [value for value in op.tensors() if value.shape not in ((), (1,))]
    return tensors if all(value.shape == op.output.shape for value in tensors) else []
