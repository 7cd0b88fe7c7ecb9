"""Time of a training step of stories15m: the emulator and eager PyTorch, side by side."""

from __future__ import annotations

from bench import step_time
from evidence import record


def main() -> None:
    """Measure and write the record."""
    record.write("step_time", step_time.measure())
