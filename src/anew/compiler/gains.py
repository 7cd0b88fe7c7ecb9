"""What the compiler spared an engine, and what that comes to on a chip: for the log and for ``anew.explain``."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from anew.plan import Plan
from anew.projection import Rates, Work, chip_names, read_rates

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gain:
    """What one pass spared a program, or the two of a region.

    Attributes:
        program: its name, or the region's. change: what was done.
        elements: passes over elements that one run does without, or elements that it does not save.
        milliseconds: projected for them, a run; None on a chip without rates.
    """

    program: str
    change: str
    elements: int
    milliseconds: float | None

    def __str__(self) -> str:
        head = f"{self.program}: {self.change} spare {self.elements / 1e6:.3g}M elements a run"
        if self.milliseconds is None:
            return f"{head} (no times are projected for this chip)"
        return f"{head}, projected {self.milliseconds:.3g} ms"


def rates_of(chip: str) -> Rates | None:
    """The rates of a chip; None where nobody measured them."""
    return read_rates(chip) if chip in chip_names() else None


def gains(plan: Plan, chip: str) -> tuple[Gain, ...]:
    """The gains of a plan on a chip, the largest first."""
    rates = rates_of(chip)
    found = [
        Gain(plan.name, change, elements, None if rates is None else 1e3 * rates.time(Work(elementwise=elements)))
        for change, elements in plan.spared.items()
        if elements
    ]
    return tuple(sorted(found, key=lambda gain: -gain.elements))


def log_gains(found: Iterable[Gain]) -> None:
    """Log gains."""
    for gain in found:
        _log.info("%s", gain)
