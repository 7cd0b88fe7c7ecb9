"""`anew doctor`: what this machine is, what works on it, and what to do about the rest."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anew.chips import Chip
    from anew.device.base import Device
    from anew.doctor.finding import Finding

DEVIATES = 1


def add_parser(verbs: argparse._SubParsersAction[Any]) -> None:
    """Add the verb and its flags."""
    parser = verbs.add_parser(
        "doctor",
        help="what this machine is, what works on it, and what to do",
        description="Say what this machine is, which routes to the engine it has and why not the others, and try the "
        "best one. With --probe, put some eighty questions to the device in under two minutes: order of ports, row "
        "strides, every operation, the arithmetic, the facts on which sources disagree, speed, a training step. The "
        "answers go to a JSON file, to be attached to an issue. The exit code is 1 where an answer differs.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--probe", action="store_true", help="put all questions to the device")
    parser.add_argument("--device", metavar="NAME", help="the route to try (default: the first that opens)")
    parser.add_argument("--chip", metavar="NAME", help="whose data file holds (default: this machine's, else m4)")
    parser.add_argument(
        "--report", type=Path, default=Path("anew-doctor.json"), metavar="FILE", help="where --probe writes"
    )


def run(arguments: argparse.Namespace) -> int:
    """Look, try, say; returns the exit code."""
    from rich.console import Console

    from anew.chips import load_chip
    from anew.doctor.machine import describe_machine

    console = Console(highlight=False, soft_wrap=True)
    machine = describe_machine()
    _print_machine(console, machine)
    chip = load_chip(arguments.chip or _own_chip(console, machine["processor"]))
    device = _open(console, chip, arguments.device)
    deviations = (
        _probe(console, device, machine, arguments.report) if arguments.probe else _try(console, device, machine)
    )
    _advise(console, device, probed=arguments.probe, deviations=deviations)
    return DEVIATES if deviations else 0


def _own_chip(console: Any, processor: str) -> str:
    """The data file of this machine's chip; a later chip than anew knows is taken for the latest that it does."""
    from anew.device.machine import chip_of, default_chip

    if chip_of(processor) not in (None, default_chip()):
        console.print(
            f"anew has no data file of {processor} yet and takes it for chip {default_chip()}; --chip names another"
        )
    return default_chip()


def _print_machine(console: Any, machine: dict[str, Any]) -> None:
    console.print("[bold]This machine[/]")
    for name, value in machine.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        console.print(f"  {name:<14} {shown}")


def _open(console: Any, chip: Chip, wanted: str | None) -> Device:
    """Open the first route that there is, the emulated engine where there is none, and say why for each."""
    from anew.device.base import DeviceError
    from anew.device.emulator.engine import EmulatedEngine
    from anew.device.routes import ROUTES
    from anew.errors import UserError

    names = [*ROUTES, EmulatedEngine.name]
    if wanted is not None and wanted not in names:
        raise UserError(f"unknown device '{wanted}'; known: {', '.join(names)}")
    console.print("[bold]Routes to the engine[/]")
    opened: Device | None = None
    for route in ROUTES.values():
        reason = route.reason_against()
        if reason is None and opened is None and wanted in (None, route.name):
            try:
                opened = route.open(chip)
            except DeviceError as error:
                reason = str(error)
        console.print(f"  {route.name:<14} {reason or 'there'} ({route.what})")
        if wanted == route.name and opened is None:
            raise UserError(f"device '{wanted}' does not open: {reason}")
    console.print(f"  {EmulatedEngine.name:<14} there (computes on the processor as chip {chip.name} does)")
    return opened or EmulatedEngine(chip, numerics="exact")


def _try(console: Any, device: Device, machine: dict[str, Any]) -> list[Finding]:
    """The few questions that tell whether training works at all."""
    from anew.doctor.examine import ESSENTIAL, examine

    console.print(f"[bold]{_title(device)}[/]")
    report = examine(device, machine, ESSENTIAL, lambda f: _print(console, f))
    return report.deviations


def _probe(console: Any, device: Device, machine: dict[str, Any], path: Path) -> list[Finding]:
    from anew.doctor.examine import examine
    from anew.errors import UserError

    if not path.parent.is_dir():
        raise UserError(f"--report {path}: there is no folder {path.parent}")
    console.print(f"[bold]{_title(device)}[/]")
    report = examine(device, machine, say=lambda finding: _print(console, finding))
    report.write(path)
    console.print(
        f"{len(report.findings)} answers in {report.seconds:.0f} s, {len(report.deviations)} differ; written to {path}"
    )
    return report.deviations


def _title(device: Device) -> str:
    kind = "emulated engine" if device.emulated else "engine"
    return f"What the {kind} does ({device.name}, chip {device.chip.name})"


def _print(console: Any, finding: Finding) -> None:
    if finding.verdict == "differs":
        console.print(f"  DIFFERS   {finding.probe}: expected {finding.expected}; found {finding.found}", markup=False)
    else:
        found = finding.found.split(":")[0] if finding.probe.startswith("disputed") else finding.found
        console.print(f"  {finding.verdict:<9} {finding.probe}: {found}", markup=False)


def _advise(console: Any, device: Device, probed: bool, deviations: list[Finding]) -> None:
    from anew.device.power import power

    console.print("[bold]What to do[/]")
    if slow := str(power() or ""):
        console.print(
            f"  Before you measure anything: {slow}. Connect it, let it cool, see Battery in System Settings."
        )
    if deviations and device.emulated:
        console.print("  The emulated engine is not itself: please open an issue with this output.")
    elif deviations:
        then = "attach the report to an issue." if probed else "run anew doctor --probe, attach its report to an issue."
        about = f"{len(deviations)} answers differ from what anew knows of chip {device.chip.name}"
        console.print(f"  Train with --device emulator for now. {about}: {then}")
    elif device.emulated:
        console.print("  Train here on the emulated engine: same programs, same losses, no engine's speed.")
        console.print("  On a Mac with Apple silicon, run this again: no route has met real hardware yet.")
    else:
        console.print("  Train: --device auto takes this route.")
        if not probed:
            console.print("  anew doctor --probe asks more, in under two minutes; its report helps others.")
