"""What the live view of a run costs: processor time of the whole process, drawing thread included, for each step.

Steps of 0.2 s that compute nothing, on a pseudo-terminal that somebody reads; the same without a display beside it.
"""

from __future__ import annotations

import math
import os
import pty
import statistics
import threading
import time

from rich.console import Console

from anew.train.display import Display, LiveDisplay
from anew.train.metrics import Record
from evidence import record

STEP_SECONDS = 0.2
STEPS, REPEATS = 50, 5


class Silence:
    """A display that shows nothing."""

    def say(self, text: object = "") -> None:
        """Say nothing."""

    def start(self, steps: int, label: str = "", device: str = "") -> None:
        """Show nothing."""

    def stepped(self, record: Record) -> None:
        """Show nothing."""

    def validated(self, iteration: int, loss: float, seconds: float) -> None:
        """Show nothing."""

    def stopping(self) -> None:
        """Show nothing."""

    def stop(self) -> None:
        """Show nothing."""


def processor_seconds(display: Display) -> float:
    """Return the processor time of a step."""
    display.start(STEPS, ", emulated", "emulated engine, chip m4, numerics fast")
    started = time.process_time()
    for step in range(1, STEPS + 1):
        time.sleep(STEP_SECONDS)
        loss = 5 + math.sin(step)
        display.stepped(Record(step, loss, None, 1e-3, 1.0, STEP_SECONDS, 5000.0, 1000 * step, 1.0, 0, 1.2))
    spent = time.process_time() - started
    display.stop()
    return spent / STEPS


def main() -> None:
    """Measure both in turn and write the record."""
    end, other = pty.openpty()
    threading.Thread(target=_drain, args=(end,), daemon=True).start()
    terminal = os.fdopen(other, "w")
    live, silent = [], []
    for _ in range(REPEATS):
        silent.append(processor_seconds(Silence()))
        live.append(processor_seconds(LiveDisplay(Console(file=terminal, force_terminal=True, width=120))))
    added = statistics.median(live) - statistics.median(silent)
    record.write(
        "live_view",
        {
            "steps_per_second": 1 / STEP_SECONDS,
            "added_milliseconds": 1000 * added,
            "part_of_step": added / STEP_SECONDS,
            "largest_part_of_step": (max(live) - min(silent)) / STEP_SECONDS,
        },
    )


def _drain(end: int) -> None:
    while os.read(end, 65536):
        pass
