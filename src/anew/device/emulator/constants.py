"""What a compiler computes once: the results of ``constexpr_*`` operations, and constants as kernels take them."""

from __future__ import annotations

from collections.abc import Mapping

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
    stored = {v.name: _stored(v, producers) for v in read if v.constant}
    return {name: _as_computed(x) for name, x in stored.items()}


def _as_computed(x: Tensor) -> Tensor:
    """A constant as kernels take it; the engine computes with fp16, also where a program says fp32."""
    if x.dtype == torch.bool:
        return x
    return (x.half() if x.is_floating_point() else x).float()


def _stored(value: Value, producers: Mapping[Value, Op]) -> Tensor:
    """A constant in the dtype it is stored in. A compressed one is rounded as coremltools does, to nearest even."""
    op = producers[value]
    if op.kind == "const":
        return torch.from_numpy(np.array(value.const, numpy_dtype(value.type.dtype)))
    definition = lookup(op.kind)
    operands = {}
    for param in definition.params:
        operand = op.inputs.get(param.name)
        if isinstance(operand, Value):
            operands[param.name] = _stored(operand, producers) if param.is_tensor else operand.const
        else:
            operands[param.name] = param.default
    return definition.meaning(**operands)
