"""The work of a program on the engine, counted from the operations of its MIL function.

Counted are matrix products, convolutions, softmax, norms, and one pass an element for every activation, arithmetic
operation, reduction (over what it reduces) and transpose. Reshapes, slices and concatenations count nothing. Constants
come from memory: a model's programs take turns, and together they hold more than stays on the engine.
"""

from __future__ import annotations

import math

from anew.mil import Function, Op, Value
from anew.projection.work import FP16_BYTES, ON_ENGINE_BYTES, Work, from_memory

_NORMS = {"layer_norm", "instance_norm", "batch_norm", "l2_norm", "rms_norm"}
_FREE = {"reshape", "expand_dims", "squeeze", "slice_by_size", "slice_by_index", "concat", "split", "cast", "identity"}


def work_of(function: Function) -> Work:
    """Return what one run of a function makes the engine do; neither copies of the host nor the dispatch itself."""
    constants = {v for op in function.ops if not op.constant for v in op.tensors() if v.constant}
    total = from_memory(float(sum(_bytes(v) for v in constants)))
    for op in function.ops:
        if not op.constant:
            total += _work(op)
    return total


def has_operation(function: Function, kind: str) -> bool:
    """Whether the engine runs an operation of that kind in a function."""
    return any(op.kind == kind and not op.constant for op in function.ops)


def _work(op: Op) -> Work:
    if op.kind == "matmul":
        return _matmul(op)
    if op.kind == "conv":
        return _convolution(op)
    if op.kind in _FREE:
        return Work()
    tensors = [v.type.numel for v in op.tensors()]
    elements = float(max([*tensors, *(v.type.numel for v in op.outputs)]))
    if op.kind == "softmax":
        return Work(attention=elements)
    return Work(norm=elements) if op.kind in _NORMS else Work(elementwise=elements)


def _matmul(op: Op) -> Work:
    left, right = op.inputs["x"], op.inputs["y"]
    assert isinstance(left, Value)
    assert isinstance(right, Value)
    turned = _flag(op, "transpose_x")
    inner = left.shape[-2] if turned else left.shape[-1]
    flops = 2.0 * op.output.type.numel * inner
    operand = FP16_BYTES * float(math.prod(right.shape[-2:]))
    return Work(matmul=flops, spilled=flops * max(0.0, 1.0 - ON_ENGINE_BYTES / operand))


def _convolution(op: Op) -> Work:
    """One of a single tap is the product of a matrix; no row measures it, and it is priced as a matmul."""
    kernel = op.inputs["weight"]
    assert isinstance(kernel, Value)
    flops = 2.0 * op.output.type.numel * math.prod(kernel.shape[1:])
    return Work(matmul=flops) if math.prod(kernel.shape[2:]) == 1 else Work(convolution=flops)


def _flag(op: Op, name: str) -> bool:
    value = op.inputs.get(name)
    return isinstance(value, Value) and bool(value.const)


def _bytes(value: Value) -> float:
    return value.type.numel * (1 if value.type.dtype in ("int8", "uint8") else FP16_BYTES)
