"""Runs a MIL function step by step. Inside, values are float32 tensors that hold fp16-representable numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from anew.device.emulator.kernels import Arithmetic, Kernel, largest_magnitude
from anew.mil import Function, Op, Value


@dataclass
class Step:
    """One kernel call: the values it reads, the one it defines, and those nobody reads after it."""

    kernel: Kernel
    operands: tuple[str, ...]
    result: str
    dead: tuple[str, ...] = ()


class Executable:
    """A function made into steps: constants converted once, values dropped after their last use."""

    def __init__(self, function: Function, *, exact: bool, convolution: str) -> None:
        self.inputs = [v.name for v in function.inputs]
        self.outputs = [v.name for v in function.outputs]
        arithmetic = Arithmetic(exact=exact, winograd=convolution == "winograd-f23-width")
        self.constants = {v.name: _constant(v) for v in function.constants() if v.type.dtype == "fp16"}
        self.steps = _fuse_maxima(function, arithmetic)
        _mark_last_uses(self.steps, keep={*self.outputs, *self.constants})

    def run(self, bindings: Mapping[str, Tensor]) -> None:
        """Read the input buffers, run every step, write the output buffers."""
        values: dict[str, Tensor] = {name: bindings[name].float() for name in self.inputs}
        values.update(self.constants)
        with torch.no_grad():
            for step in self.steps:
                values[step.result] = step.kernel(*[values[name] for name in step.operands])
                for name in step.dead:
                    del values[name]
            for name in self.outputs:
                bindings[name].copy_(values[name])


def _constant(value: Value) -> Tensor:
    return torch.as_tensor(value.const, dtype=torch.float32)


def _fuse_maxima(function: Function, arithmetic: Arithmetic) -> list[Step]:
    """One step an operation, but for ``reduce_max(abs(x))`` over all axes: one pass, exact either way."""
    ops = [op for op in function.ops if op.kind != "const"]
    producers = {op.output: op for op in ops}
    uses = Counter(v for op in ops for v in op.tensors())
    uses.update(function.outputs)
    fused: set[Op] = set()
    steps: list[Step] = []
    for op in ops:
        (source, *_) = op.tensors()
        before = producers.get(source)
        if _reduces_all(op) and before is not None and before.kind == "abs" and uses[source] == 1:
            fused.add(before)
            (source,) = before.tensors()
            steps.append(Step(largest_magnitude(op.output.shape), (source.name,), op.output.name))
        else:
            steps.append(Step(arithmetic.kernel(op), tuple(v.name for v in op.tensors()), op.output.name))
    names = {op.output.name for op in fused}
    return [step for step in steps if step.result not in names]


def _reduces_all(op: Op) -> bool:
    return op.kind == "reduce_max" and op.output.type.numel == 1


def _mark_last_uses(steps: list[Step], keep: set[str]) -> None:
    seen = set(keep)
    for step in reversed(steps):
        names = {*step.operands, step.result}
        step.dead = tuple(sorted(names - seen))
        seen |= names
