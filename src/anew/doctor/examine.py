"""Puts all probes to a device, and keeps the answers as a report that others can read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anew.device.base import Device
from anew.doctor.arithmetic import arithmetic
from anew.doctor.disputed import disputed
from anew.doctor.energy import energy
from anew.doctor.finding import Finding, Probe
from anew.doctor.operations import operations
from anew.doctor.ports import port_order, row_stride
from anew.doctor.programs import budget, instances, reload
from anew.doctor.timing import timing
from anew.doctor.training import training_step
from anew.errors import AnewError

#: In this order: later ones presume what earlier ones ask; the budget comes last, since it may use up the process.
PROBES: tuple[Probe, ...] = (
    port_order, row_stride, operations, arithmetic, disputed, reload, instances, timing, energy,
    training_step, budget,
)  # fmt: skip
#: Those that tell whether training works at all.
ESSENTIAL: tuple[Probe, ...] = (port_order, row_stride, training_step)
FORMAT = 1


@dataclass(frozen=True)
class Report:
    """What a device answered: machine and device as data, and the findings in order."""

    machine: dict[str, Any]
    device: dict[str, Any]
    findings: list[Finding]
    seconds: float

    @property
    def deviations(self) -> list[Finding]:
        """The findings that differ from what was expected."""
        return [finding for finding in self.findings if finding.verdict == "differs"]

    def write(self, path: Path) -> None:
        """Write the report as JSON, whole or not at all."""
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps({"format": FORMAT} | asdict(self), indent=1) + "\n", encoding="utf-8")
        partial.rename(path)


def examine(
    device: Device,
    machine: dict[str, Any],
    probes: tuple[Probe, ...] = PROBES,
    say: Callable[[Finding], None] | None = None,
) -> Report:
    """Put the probes to a device. One that fails as a whole is a finding of its own; the others go on."""
    start = time.perf_counter()
    findings = []
    for probe in probes:
        for finding in _answers(probe, device):
            findings.append(finding)
            if say:
                say(finding)
    about = {"name": device.name, "emulated": device.emulated, "chip": device.chip.name}
    return Report(machine, about, findings, time.perf_counter() - start)


def _answers(probe: Probe, device: Device) -> Iterator[Finding]:
    name = getattr(probe, "__name__", "probe")
    try:
        yield from probe(device)
    except AnewError as error:
        yield Finding(f"{name}/whole", "runs", str(error), "differs", {"error": type(error).__name__})
