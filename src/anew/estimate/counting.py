"""A device that computes nothing and counts: what programs compute, the host copies and the engine streams.

A buffer is copied by the host once, before the first run that reads it since it was leased, unless a run wrote it. A
result that no later run of the step reads is one that the host reads.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from anew.device.base import LoadedProgram, Operation, Port
from anew.device.buffers import BufferPool
from anew.device.copies import Copies, Copy
from anew.device.null import NullDevice
from anew.mil import Function, Weights, parse_program
from anew.projection import Work
from anew.projection.count import has_operation, work_of
from anew.projection.work import FP16_BYTES

#: A lease: where its memory lies and which of the leases there it is.
Lease = tuple[int, int]


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


class CountedCopies(Copies):
    """Copies of results were read by the host, though a later run takes them from their buffers, too."""

    def __init__(self, device: CountingDevice) -> None:
        super().__init__()
        self.device = device

    def keep(self, x: Tensor, copy: Copy) -> None:
        """Remember a copy, as :meth:`Copies.keep` does."""
        super().keep(x, copy)
        self.device.note_read(copy.buffer)


class CountingDevice(NullDevice):
    """The null device, which keeps account of the work of each run.

    Attributes:
        work: by the text of the programs. convolutions: whether any of them multiplied by a kernel.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.buffers: NumberedPool = NumberedPool(self.buffers.row_bytes)
        self.copies = CountedCopies(self)
        self.reset()

    def reset(self) -> None:
        """Forget the runs so far."""
        self.work: defaultdict[str, Work] = defaultdict(Work)
        self.convolutions = False
        self.filled: set[Lease] = set()
        self.written: dict[Lease, tuple[str, int]] = {}

    def total(self, left_out: Collection[str] = ()) -> Work:
        """The work since the last reset, without that of some texts; what nothing read by now the host copies back."""
        found = dict(self.work)
        for text, elements in self.written.values():
            found[text] += Work(write=elements)
        return sum((work for text, work in found.items() if text not in left_out), Work())

    def _compile(self, text: str, weights: Weights, function: str | None) -> LoadedProgram:
        return CountingProgram(self, text, parse_program(text, weights).function(function))

    def _compile_procedures(self, text: str, weights: Weights) -> dict[str, LoadedProgram]:
        found = parse_program(text, weights).functions
        return {name: CountingProgram(self, text, entry) for name, entry in found.items()}

    def note(self, program: CountingProgram, bindings: dict[str, Tensor]) -> None:
        """Count one run of a program on these buffers."""
        self.convolutions |= program.convolution
        work = program.work + Work(dispatches=1)
        for port in program.inputs:
            lease, elements = self.buffers.number(bindings[port.name]), port.type.numel
            if lease not in self.filled:
                self.filled.add(lease)
                work += Work(read=elements)
            else:
                work += Work(weight_bytes=FP16_BYTES * elements)
            if self.written.pop(lease, None):
                work += Work(weight_bytes=FP16_BYTES * elements)  # which an earlier run wrote to memory
        self.work[program.text] += work
        for port in program.outputs:
            lease = self.buffers.number(bindings[port.name])
            self.filled.add(lease)
            self.written[lease] = program.text, port.type.numel

    def note_read(self, buffer: Tensor) -> None:
        """Count that the host read a buffer, if a run wrote it."""
        text, elements = self.written.pop(self.buffers.number(buffer), ("", 0))
        if elements:
            self.work[text] += Work(write=elements)


class CountingProgram(LoadedProgram):
    """A program, and the work of one run on the engine."""

    def __init__(self, device: CountingDevice, text: str, entry: Function) -> None:
        super().__init__(
            device, [Port(v.name, v.type) for v in entry.inputs], [Port(v.name, v.type) for v in entry.outputs]
        )
        self.counting = device
        self.text = text
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
