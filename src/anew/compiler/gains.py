"""What the compiler spared an engine, and what that comes to on a chip: for the log and for ``anew.explain``."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from anew.plan import Plan
from anew.projection import Work, chip_names, read_rates

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gain:
    """What one pass spared a program.

    Attributes:
        program: its name. change: what was done.
        elements: passes over elements that one run does without.
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


def gains(plan: Plan, chip: str) -> tuple[Gain, ...]:
    """The gains of a plan on a chip, the largest first."""
    price = read_rates(chip).time if chip in chip_names() else None
    found = [
        Gain(plan.name, change, elements, None if price is None else 1e3 * price(Work(elementwise=elements)))
        for change, elements in plan.spared.items()
        if elements
    ]
    return tuple(sorted(found, key=lambda gain: -gain.elements))


def log_gains(plan: Plan, chip: str) -> None:
    """Log the gains of a plan."""
    for gain in gains(plan, chip):
        _log.info("%s", gain)
