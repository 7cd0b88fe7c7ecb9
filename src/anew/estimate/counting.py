"""A device that computes nothing and counts: what programs compute, the host copies and the engine streams.

A buffer is copied by the host once, before the first run that reads it since it was leased, unless a run wrote it. Of a
run's results the host reads those that its plan does not save for the backward pass. Whoever else touches a buffer, the
engine streams every operand of a run from memory and every result to it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from anew.device.base import LoadedProgram, Operation, Port
from anew.device.buffers import BufferPool
from anew.device.null import NullDevice
from anew.mil import Function, Weights, parse_program
from anew.plan import MAXIMA, Plan
from anew.projection import Work
from anew.projection.count import has_operation, work_of
from anew.projection.work import FP16_BYTES, from_memory

#: A lease: where its memory lies and which of the leases there it is.
Lease = tuple[int, int]
#: Names of a program's results: a plan and its programs that hold constants agree in them, layers and loss do not.
Names = tuple[str, ...]
#: A result: names of its program, its own name.
Result = tuple[Names, str]


class NumberedPool(BufferPool):
    """A pool that numbers the leases of the same memory."""

    def __init__(self, row_bytes: int) -> None:
        super().__init__(row_bytes)
        self.numbers: Counter[int] = Counter()

    def lease(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float16) -> Tensor:
        """Return a tensor, as :meth:`BufferPool.lease` does."""
        buffer = super().lease(shape, dtype)
        self.numbers[buffer.data_ptr()] += 1
        return buffer

    def number(self, buffer: Tensor) -> Lease:
        """Which lease a buffer is."""
        return buffer.data_ptr(), self.numbers[buffer.data_ptr()]


class CountingDevice(NullDevice):
    """The null device, which keeps account of the work of each run.

    Attributes:
        work: by the names of the programs' results. convolutions: whether any of them multiplied by a kernel.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.buffers: NumberedPool = NumberedPool(self.buffers.row_bytes)
        self.reset()

    def reset(self, filled: Iterable[Tensor] = ()) -> None:
        """Forget the runs so far, except that these buffers hold what is read from them."""
        self.work: defaultdict[Names, Work] = defaultdict(Work)
        self.convolutions = False
        self.filled: set[Lease] = {self.buffers.number(buffer) for buffer in filled}
        self.results: Counter[Result] = Counter()
        self.writers: dict[Lease, Result] = {}

    def keep(self, buffer: Tensor) -> None:
        """Note that the host does not copy what a run wrote there."""
        writer = self.writers.pop(self.buffers.number(buffer), None)
        if writer is not None:
            self.results[writer] -= buffer.numel()

    def total(self, plans: Iterable[Plan], left_out: Iterable[Plan] = ()) -> Work:
        """The work since the last reset of programs of these plans, without that of some."""
        saved = {(_names(plan), port.name) for plan in plans for port in plan.outputs if port.saved}
        gone = {_names(plan) for plan in left_out}
        read = sum(n for (names, name), n in self.results.items() if names not in gone and (names, name) not in saved)
        return sum((work for names, work in self.work.items() if names not in gone), Work(write=read))

    def _compile(self, text: str, weights: Weights, function: str | None) -> LoadedProgram:
        return CountingProgram(self, parse_program(text, weights).function(function))

    def _compile_procedures(self, text: str, weights: Weights) -> dict[str, LoadedProgram]:
        found = parse_program(text, weights).functions
        return {name: CountingProgram(self, entry) for name, entry in found.items()}

    def note(self, program: CountingProgram, bindings: dict[str, Tensor]) -> None:
        """Count one run of a program on these buffers."""
        self.convolutions |= program.convolution
        work = program.work + Work(dispatches=1)
        for port in program.inputs:
            lease, elements = self.buffers.number(bindings[port.name]), port.type.numel
            if lease not in self.filled:
                self.filled.add(lease)
                work += Work(read=elements)
            work += from_memory(FP16_BYTES * elements)
        self.work[program.names] += work
        for port in program.outputs:
            lease = self.buffers.number(bindings[port.name])
            self.filled.add(lease)
            self.writers[lease] = program.names, port.name
            self.results[self.writers[lease]] += port.type.numel
            self.work[program.names] += from_memory(FP16_BYTES * port.type.numel)


class CountingProgram(LoadedProgram):
    """A program, and the work of one run on the engine."""

    def __init__(self, device: CountingDevice, entry: Function) -> None:
        super().__init__(
            device, [Port(v.name, v.type) for v in entry.inputs], [Port(v.name, v.type) for v in entry.outputs]
        )
        self.counting = device
        self.names = tuple(sorted(v.name for v in entry.outputs if v.name != MAXIMA))
        self.work = work_of(entry)
        self.convolution = has_operation(entry, "conv")

    def operation(self) -> Operation:
        """Make an operation that counts."""
        return _CountingOperation(self)


class _CountingOperation(Operation):
    def _execute(self) -> None:
        program: Any = self.program
        for port in program.outputs:
            self.bindings[port.name].zero_()
        program.counting.note(program, self.bindings)


def _names(plan: Plan) -> Names:
    return tuple(sorted(port.name for port in plan.outputs))
