"""The points of the charts: records of a run, as many steps to a point as keep the page small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from anew.report.run import Run
from anew.train.metrics import Record

#: Points of one curve, all runs together.
POINTS = 1200

Point = dict[str, Any]


def step_points(runs: Sequence[Run]) -> list[Point]:
    """Return what was measured in each step: means over as many steps as a point stands for, and counts added up."""
    most = POINTS // len(runs)
    return [
        {"run": run.name, **_step_point(group, before)}
        for run in runs
        for before, group in _groups(run.records, most)
        if any(r.train_loss is not None for r in group)
    ]


def validation_points(runs: Sequence[Run]) -> list[Point]:
    """Return the validation losses, evenly thinned where there are too many."""
    found = []
    for run in runs:
        measured = [r for r in run.records if r.val_loss is not None]
        stride = -(-len(measured) // (POINTS // len(runs))) or 1
        kept = measured[::-stride][::-1]  # counted from the end: the last one stays
        found += [{"run": run.name, "step": r.iteration, "loss": r.val_loss} for r in kept]
    return found


def steps_to_a_point(runs: Sequence[Run]) -> int:
    """Return how many steps a point stands for at most."""
    most = POINTS // len(runs)
    return max((len(group) for run in runs for _, group in _groups(run.records, most)), default=1)


def _groups(records: Sequence[Record], most: int) -> list[tuple[Record, Sequence[Record]]]:
    """Cut the steps of a run into groups of equal size, each with the record before it."""
    size = -(-max(len(records) - 1, 1) // most)
    return [(records[at - 1], records[at : at + size]) for at in range(1, len(records), size)]


def _step_point(group: Sequence[Record], before: Record) -> Point:
    def mean(value: Callable[[Record], float | None]) -> float | None:
        found = [x for x in map(value, group) if x is not None]
        return float(f"{fmean(found):.6g}") if found else None

    seconds, on_device = mean(lambda r: r.seconds), mean(lambda r: r.device_seconds)
    host = None if seconds is None or on_device is None else float(f"{max(seconds - on_device, 0.0):.6g}")
    return {
        "step": group[-1].iteration,
        "loss": mean(lambda r: r.train_loss),
        "rate": mean(lambda r: r.learning_rate),
        "norm": mean(lambda r: r.grad_norm),
        "scale": group[-1].loss_scale,
        "rescaled": group[-1].rescaled - before.rescaled,
        "speed": mean(lambda r: r.tokens_per_second),
        "device": on_device,
        "host": host,
        "memory": group[-1].peak_memory,
    }
