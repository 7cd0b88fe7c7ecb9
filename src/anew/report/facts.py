"""The figures and facts of a run in words, in the order of the page's tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from anew.report.run import Run

NONE = "–"
#: A table: a heading for each row, and a cell for each run.
Rows = list[tuple[str, list[str]]]


def results(runs: Sequence[Run]) -> Rows:
    """Return what came out, row by row."""
    return _table([_results(run) for run in runs])


def origins(runs: Sequence[Run]) -> Rows:
    """Return what was run and on what, row by row."""
    return _table([_origin(run) for run in runs])


def settings(runs: Sequence[Run]) -> Rows:
    """Return every setting, row by row."""
    return _table([{key: _shown(value) for key, value in run.about["config"].items()} for run in runs])


def _table(columns: Sequence[Mapping[str, str]]) -> Rows:
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [column.get(name, NONE) for column in columns]) for name in names]


def _results(run: Run) -> dict[str, str]:
    about, records = run.about, run.records
    losses = [r.val_loss for r in records if r.val_loss is not None]
    speeds = [r.tokens_per_second for r in records if r.tokens_per_second]
    seconds = about.get("seconds", {})
    last = records[-1] if records else None
    return {
        "Status": str(about.get("status", NONE)),
        "Steps": f"{last.iteration:,}" if last else NONE,
        "Validation loss": f"{losses[0]:.3f} → {losses[-1]:.3f}" if losses else NONE,
        "Tokens learned from": f"{last.trained_tokens:,}" if last else NONE,
        "Speed, median": f"{median(speeds):,.0f} tokens/s" if speeds else NONE,
        "Time": f"{seconds['training']:.1f} s of {seconds['total']:.1f} s in steps" if seconds else NONE,
        "Peak memory": f"{last.peak_memory:.2f} GB" if last else NONE,
        "Energy": _energy(run),
        "Parameters": _count(about.get("parameters")),
        "Trained parameters": _count(about.get("trained_parameters", about.get("parameters"))),
        "Programs": _count(about.get("programs")),
        "Dispatches": _count(about.get("dispatches")),
        "Calls run again": _count(last.rescaled if last else None),
        "Steps skipped": "none ever is: a call whose value outgrew its scale runs again",
    }


def _energy(run: Run) -> str:
    taken = [sum(j for j in r.joules.values() if j is not None) for r in run.records if r.joules]
    return f"{sum(taken) / len(taken):.3g} J a step, of the whole machine" if taken else "unavailable"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else NONE


def _origin(run: Run) -> dict[str, str]:
    about = run.about
    machine, versions = about.get("machine", {}), about.get("versions", {})
    return {
        "Device": device(run),
        "Command": str(about.get("command", NONE)),
        "Resumed from step": _shown(about.get("resumed_from")),
        "Machine": ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in machine.items()) or NONE,
        "Versions": ", ".join(f"{key} {value}" for key, value in versions.items()) or NONE,
    }


def device(run: Run) -> str:
    """Return where a run computed, and that it was emulated if it was."""
    found = run.about.get("statistics")
    if not found:
        return "not known: the run has not ended"
    if found["device"] == "cpu":
        return "cpu, plain PyTorch: no engine was used"
    engine = "emulated engine: no Neural Engine computed this" if found["emulated"] else f"engine ({found['device']})"
    return f"{engine}; chip {found['chip']}, numerics {found['numerics']}"


def fallbacks(run: Run) -> list[tuple[str, str]]:
    """Return the operations of regions that ran on the host although they are no boundary's, each with its rule."""
    found = run.about.get("statistics", {}).get("host_operations", [])
    return [(f"{h['operation']} {h['shape']} in {h['region']}", h["rule"]) for h in found if h["kind"] == "fallback"]


def _shown(value: Any) -> str:
    if value is None:
        return NONE
    return value if isinstance(value, str) else json.dumps(value)
