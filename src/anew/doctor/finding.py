"""What a probe finds, and how a probe runs a program on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from anew.chips import load_chip
from anew.device.base import Device, Operation
from anew.device.emulator.engine import EmulatedEngine
from anew.mil import Builder, Value, Weights, print_program

Verdict = Literal["agrees", "differs", "measured"]


@dataclass(frozen=True)
class Finding:
    """The answer of a device to one question.

    Attributes:
        probe: its name, ``group/subject``.
        expected: what the chip's data file or the emulator says; empty where nothing does.
        found: what the device did.
        verdict: ``agrees`` or ``differs``; ``measured`` where there is nothing to agree with.
        raw: the numbers behind it, as JSON.
    """

    probe: str
    expected: str
    found: str
    verdict: Verdict
    raw: Mapping[str, Any] = field(default_factory=dict)


#: Asks a device a few questions.
Probe = Callable[[Device], Iterator[Finding]]


def compared(probe: str, expected: str, found: str, **raw: Any) -> Finding:
    """A finding that agrees when both texts are equal."""
    return Finding(probe, expected, found, "agrees" if expected == found else "differs", raw)


@dataclass(frozen=True)
class Experiment:
    """A program with the values of its inputs: float64, each of which fp16 holds."""

    text: str
    weights: Weights
    inputs: Mapping[str, Tensor]

    @classmethod
    def of(cls, builder: Builder, results: list[Value], inputs: Mapping[str, Tensor]) -> Experiment:
        """Close a builder."""
        text, weights = print_program(builder.program(results))
        return cls(text, weights, inputs)

    def run(self, device: Device) -> dict[str, Tensor]:
        """Compile, execute and unload; returns the results by port, in float64.

        Raises DeviceError or MilError where the device refuses.
        """
        with self.loaded(device) as (operation, buffers):
            operation.execute()
            return {port.name: buffers[port.name].double() for port in operation.program.outputs}

    @contextmanager
    def loaded(self, device: Device) -> Iterator[tuple[Operation, dict[str, Tensor]]]:
        """An operation and the buffers bound to it, which hold the inputs. Raises as :meth:`run`."""
        program = device.compile(self.text, self.weights)
        try:
            operation = program.operation()
            buffers = {n: device.buffers.lease(p.type.shape, p.dtype) for n, p in program.ports.items()}
            for name, value in self.inputs.items():
                buffers[name].copy_(value)
            operation.bind(buffers)
            yield operation, buffers
        finally:
            program.release()


def reference_engine(device: Device) -> EmulatedEngine:
    """The emulated engine of a device's chip, bit for bit, where every disputed construct is allowed."""
    allowed = {name: "allow" for name, switch in device.chip.switches.items() if "allow" in switch.sources}
    return EmulatedEngine(load_chip(device.chip.name, allowed), numerics="exact")


def numbers(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers that fp16 holds, in float64."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).half().double()


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference over that of what is wanted; not finite where the found values are not."""
    return ((found - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()
