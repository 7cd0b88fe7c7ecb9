"""Devices that a worker process opens in tests, some of which go wrong once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor

from anew.chips import load_chip
from anew.device.base import Device, LoadedProgram, Operation
from anew.device.e5rt.engine import E5rtEngine
from anew.device.e5rt.functions import Espresso
from anew.device.emulator.engine import EmulatedEngine
from tests.runtime.espresso import FakeEspresso

_fakes: list[FakeEspresso] = []


def emulator() -> Device:
    """The emulated engine."""
    torch.set_num_threads(1)
    return EmulatedEngine(load_chip("m4"))


def espresso(library: Path, once: Path, fault: str, call: int) -> Device:
    """The e5rt route on the fake; its call of that number aborts or hangs, in the first process that opens it."""
    torch.set_num_threads(1)
    fake = FakeEspresso(library, load_chip("m4"))
    _fakes.append(fake)  # its callbacks must live
    if fault and not once.exists():
        once.touch()
        getattr(fake.library, f"fake_{fault}_at")(call)
    return E5rtEngine(fake.chip, espresso=Espresso(str(library)))


def process_of(device: Device) -> int:
    """The id of the process that a worker device talks to."""
    return device._process.number


def wait_until_gone(process: int) -> bool:
    """Whether a process ends within ten seconds."""
    for _ in range(200):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def run(program: LoadedProgram, operation: Operation, **inputs: Tensor) -> dict[str, Tensor]:
    """Run a program in an operation over fresh leases; returns copies of its outputs."""
    lease = program.device.buffers.lease
    buffers = {name: lease(port.type.shape) for name, port in program.ports.items()}
    for name, x in inputs.items():
        buffers[name].copy_(x)
    operation.bind(buffers)
    operation.execute()
    operation.release_bindings()
    return {port.name: buffers[port.name].clone() for port in program.outputs}
