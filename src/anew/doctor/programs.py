"""Probes of the life of programs: new weights under old text, several operations of one program, and the budget."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from anew.device.base import Device, DeviceError, LoadedProgram, Operation
from anew.doctor.finding import Experiment, Finding, compared
from anew.mil import Builder


def _scaled_by(factor: float) -> Experiment:
    """A program that multiplies by a baked constant; its text is the same for every factor."""
    b = Builder()
    x = torch.ones(1, 4, 1, 32)
    baked = b.array((x * factor).numpy(), "w")
    return Experiment.of(b, [b.op("mul", "y", x=b.input("x", x.shape), y=baked)], {"x": x})


def reload(device: Device) -> Iterator[Finding]:
    """The same text compiled again with other weights must not give the old results."""
    found = [_scaled_by(factor).run(device)["y"].mean().item() for factor in (2.0, 3.0, 2.0)]
    yield compared("programs/other weights under one text", "2, 3, 2", ", ".join(f"{x:g}" for x in found), values=found)


def instances(device: Device) -> Iterator[Finding]:
    """Two operations of one program keep their own bindings."""
    experiment = _scaled_by(2.0)
    program = device.compile(experiment.text, experiment.weights)
    found = []
    try:
        bound = []
        for value in (1.0, 5.0):
            buffers = {n: device.buffers.lease(p.type.shape, p.dtype) for n, p in program.ports.items()}
            buffers["x"].fill_(value)
            operation = program.operation()
            operation.bind(buffers)
            bound.append((operation, buffers))
        for operation, _ in bound:
            operation.execute()
        found = [buffers["y"].double().mean().item() for _, buffers in bound]
    finally:
        program.release()
    yield compared("programs/two operations of one", "2, 10", ", ".join(f"{x:g}" for x in found), values=found)


def budget(device: Device) -> Iterator[Finding]:
    """How many programs load at once, one beyond what the chip allows; the last probe: it may use up the process."""
    experiment, most = _scaled_by(2.0), _most(device)
    programs: list[LoadedProgram] = []
    operations: list[Operation] = []  # some routes load a program with its first operation
    reason = ""
    try:
        while len(operations) <= most:
            programs.append(device.compile(experiment.text, experiment.weights))
            operations.append(programs[-1].operation())
    except DeviceError as refused:
        reason = str(refused)
    count = len(operations)
    for program in programs:
        program.release()
    raw = {"loaded": count, "compiles": device.statistics.compiles, "reason": reason}
    yield Finding("programs/budget", f"{most} load", f"{count} load", "agrees" if count == most else "differs", raw)


def _most(device: Device) -> int:
    """The programs that may be loaded at once; where compiles are counted, no more than are left of them."""
    chip = device.chip
    if chip.switches["compile_budget"].value != "wrapper":
        return chip.loaded_programs
    return min(chip.loaded_programs, chip.compiles - device.statistics.compiles)
