"""Time and peak memory of a training step of both stories models: the emulator, eager and compiled PyTorch."""

from __future__ import annotations

from bench import step_time
from evidence import record


def main() -> None:
    """Measure and write the record."""
    record.write("step_time", {preset: step_time.measure(preset) for preset in step_time.BATCHES})
