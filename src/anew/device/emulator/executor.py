"""Runs a MIL function step by step. Inside, values are float32 tensors that hold fp16-representable numbers.

A NaN in an input becomes +infinity on its way in, as on the engine (source: ane-guide, part 1, Numerics; M1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from anew.device.emulator.constants import run_time_constants
from anew.device.emulator.fusion import Step, make_steps
from anew.device.emulator.kernels import Arithmetic
from anew.device.emulator.rounding import widen
from anew.mil import Function


class Executable:
    """A function made into steps: constants converted once, values dropped after their last use."""

    def __init__(self, function: Function, arithmetic: Arithmetic) -> None:
        self.inputs = [v.name for v in function.inputs]
        self.outputs = [v.name for v in function.outputs]
        self.narrow = arithmetic.narrow_inputs(function)
        self.constants = run_time_constants(function)
        self.steps = make_steps(function, self.constants, arithmetic)
        _mark_last_uses(self.steps, keep={*self.outputs, *self.constants})

    def run(self, bindings: Mapping[str, Tensor]) -> None:
        """Read the input buffers, run every step, write the output buffers; what fp32 buffers hold becomes fp16."""
        values: dict[str, Any] = {name: self._read(name, bindings[name].half()) for name in self.inputs}
        values.update(self.constants)
        with torch.no_grad():
            for step in self.steps:
                operands = [values[name] for name in step.operands]
                into = bindings[step.sink] if step.sink else None
                direct = into is not None and into.dtype == torch.float16
                results = step.kernel(*operands, into=into) if direct else step.kernel(*operands)
                values.update(zip(step.results, results, strict=True))
                for name in step.dead:
                    del values[name]
            for name in self.outputs:
                if values[name] is not bindings[name]:
                    bindings[name].copy_(values[name])

    def _read(self, name: str, x: Tensor) -> Tensor:
        return x if name in self.narrow else widen(x)


def _mark_last_uses(steps: list[Step], keep: set[str]) -> None:
    seen = set(keep)
    for step in reversed(steps):
        names = {*step.operands, *step.results}
        step.dead = tuple(sorted(names - seen))
        seen |= names
