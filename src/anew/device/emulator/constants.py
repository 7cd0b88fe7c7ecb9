"""What a compiler computes once: the results of ``constexpr_*`` operations, and constants as kernels take them.

The weights of 1x1 convolutions stay as they are stored, fp16 or quantized, as on the engine, which streams them: a
frozen model in them takes its bytes once a program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from anew.mil import Function, Op, Value, lookup
from anew.mil.types import numpy_dtype


def run_time_constants(function: Function) -> dict[str, Tensor]:
    """Return the constants that operations read when a function runs, by name: float32 on the fp16 grid, or bool.

    Raises MilError when the operands of a ``constexpr_*`` operation do not fit each other.
    """
    producers = {v: op for op in function.ops if op.constant for v in op.outputs}
    read = {v for op in function.ops if not op.constant for v in op.tensors()} | set(function.outputs)
    streamed = streamed_values(function)
    stored = {v.name: _stored(v, producers) for v in read if v.constant and v not in streamed}
    return {name: _as_computed(x) for name, x in stored.items()}


def streamed_values(function: Function) -> set[Value]:
    """The constants that nothing but 1x1 convolutions read, as their weight."""
    found = {v for op in function.ops if is_pointwise(op) for v in [op.inputs["weight"]] if isinstance(v, Value)}
    others = {v for op in function.ops if not op.constant for v in op.tensors() if op.inputs.get("weight") is not v}
    return {v for v in found if v.constant} - others - set(function.outputs)


def streamed_constants(function: Function) -> dict[Value, Callable[[], Tensor]]:
    """What makes each of :func:`streamed_values`, in the form of :func:`run_time_constants`, when it is read."""
    producers = {v: op for op in function.ops if op.constant for v in op.outputs}
    return {v: partial(_streamed, v, producers) for v in streamed_values(function)}


def _streamed(value: Value, producers: Mapping[Value, Op]) -> Tensor:
    return _as_computed(_stored(value, producers))


def is_pointwise(op: Op) -> bool:
    """Whether an operation is a convolution of one tap, one group and stride 1 without padding: a matrix product."""
    if op.kind != "conv" or "bias" in op.inputs:
        return False
    x, weight, strides = op.inputs["x"], op.inputs["weight"], op.inputs["strides"]
    assert isinstance(x, Value)
    assert isinstance(weight, Value)
    assert isinstance(strides, Value)
    one_group = weight.shape == (op.output.shape[1], x.shape[1], 1, 1)
    return one_group and tuple(strides.const) == (1, 1) and op.output.shape[2:] == x.shape[2:]


def _as_computed(x: Tensor) -> Tensor:
    """A constant as kernels take it; the engine computes with fp16, also where a program says fp32."""
    if x.dtype == torch.bool:
        return x
    return (x.half() if x.is_floating_point() else x).float()


def _stored(value: Value, producers: Mapping[Value, Op]) -> Tensor:
    """A constant in the dtype it is stored in. A compressed one is rounded as coremltools does, to nearest even."""
    op = producers[value]
    if op.kind == "const":
        return torch.from_numpy(np.asarray(value.const, numpy_dtype(value.type.dtype)))
    definition = lookup(op.kind)
    operands = {}
    for param in definition.params:
        operand = op.inputs.get(param.name)
        if isinstance(operand, Value):
            operands[param.name] = _stored(operand, producers) if param.is_tensor else operand.const
        else:
            operands[param.name] = param.default
    return definition.meaning(**operands)
