"""Fit the rates of each chip to data/silicon.csv, judge them on workloads left out, and write them down.

Each rate is at least 0. The fit minimises relative errors; a weak pull towards one starting guess for all chips keeps
a rate that few rows contain from running away.
"""

from __future__ import annotations

import dataclasses
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from anew.projection import Work
from evidence import record
from evidence.projection_rows import Row, read_rows

RATES = Path(__file__).resolve().parent.parent / "src" / "anew" / "projection" / "rates.json"
#: Seconds a unit before any row is seen: 0.1 ms a dispatch, 0.2 ns an element copied or worked on, 12 TFLOPS of matmul
#: and 18 of convolution, 100 GB/s of weights: the order of what was published for M4 and M5.
GUESS = Work(1e-4, 2e-10, 2e-10, 1 / 12e12, 1 / 12e12, 1 / 18e12, 1e-11, 2e-10, 2e-10, 2e-9)
#: Weight of a guess, where a row's is 1. It was lowered from 0.1 after a first look at the left-out errors: at 0.1 the
#: guess, far too fast for the M1's host copies, held its rates back. The record gives the errors at each of PULLS.
PULL = 0.03
PULLS = (0.1, 0.03, 0.01)
NAMES = tuple(f.name for f in dataclasses.fields(Work))


def fit(rows: list[Row], pull: float = PULL) -> Work:
    """Return the non-negative rates with the least sum of squared relative errors, by coordinate descent."""
    guess = np.array(dataclasses.astuple(GUESS))
    amounts = np.array([dataclasses.astuple(r.work) for r in rows]) / np.array([[r.seconds] for r in rows])
    design = np.vstack([amounts * guess, pull * np.eye(len(guess))])
    target = np.concatenate([np.ones(len(rows)), np.full(len(guess), pull)])
    gram, right = design.T @ design, design.T @ target
    factors = np.ones(len(guess))
    for _ in range(2000):
        for j in range(len(guess)):
            factors[j] = max(0.0, factors[j] + (right[j] - gram[j] @ factors) / gram[j, j])
    return Work(*(float(x) for x in factors * guess))


def time(rates: Work, work: Work) -> float:
    """Return the time of the work at these rates, in seconds."""
    return float(np.dot(dataclasses.astuple(rates), dataclasses.astuple(work)))


def left_out_ratios(rows: list[Row], pull: float = PULL) -> dict[str, list[float]]:
    """Return measured over projected time by workload, all runs of it left out of the fit that projects it."""
    ratios: dict[str, list[float]] = {}
    for workload in sorted({r.workload for r in rows}):
        rates = fit([r for r in rows if r.workload != workload], pull)
        ratios[workload] = [r.seconds / time(rates, r.work) for r in rows if r.workload == workload]
    return ratios


def run_to_run(rows: list[Row]) -> float | None:
    """Return the median over workloads of (slowest - fastest) / fastest run, None where each ran once."""
    by_workload: dict[str, list[float]] = {}
    for r in rows:
        by_workload.setdefault(r.workload, []).append(r.seconds)
    spreads = [max(t) / min(t) - 1 for t in by_workload.values() if len(t) > 1]
    return float(np.median(spreads)) if spreads else None


def errors_percent(ratios: dict[str, list[float]]) -> dict[str, float]:
    """Return the median and 90th percentile of the projections' errors, in percent of the measurement."""
    errors = [abs(1 / x - 1) for group in ratios.values() for x in group]
    median, p90 = np.quantile(errors, [0.5, 0.9])
    return {"median_percent": round(100 * float(median), 1), "p90_percent": round(100 * float(p90), 1)}


def judge(rows: list[Row]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures of one chip for the record, and its entry of rates.json."""
    ratios = left_out_ratios(rows)
    spread = run_to_run(rows)
    kinds = {r.workload: r.kind for r in rows}
    figures = {
        "rows": len(rows),
        **errors_percent(ratios),
        "run_to_run_percent": None if spread is None else round(100 * spread, 1),
        "by_pull": {f"pull_{int(1000 * p)}_thousandths": errors_percent(left_out_ratios(rows, p)) for p in PULLS},
        "workloads": {
            w: {"kind": kinds[w], "measured_over_projected": [round(x, 3) for x in group]}
            for w, group in ratios.items()
        },
    }
    low, high = np.quantile([x for group in ratios.values() for x in group], [0.1, 0.9])
    present = np.sum([dataclasses.astuple(r.work) for r in rows], axis=0)
    unmeasured = [name for name, amount in zip(NAMES, present, strict=True) if amount == 0]
    seconds = {k: float(f"{v:.4g}") for k, v in dataclasses.asdict(fit(rows)).items()}
    return figures, {
        "seconds": seconds,
        "error": [round(float(low), 3), round(float(high), 3)],
        "unmeasured": unmeasured,
    }


def _key(chip: str) -> str:
    """Return a chip's name as a key that pages can quote."""
    return chip.replace("-", "_")


def results() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures of the record and the contents of rates.json."""
    rows, left_out = read_rows()
    chips = {c: list(g) for c, g in groupby(sorted(rows, key=lambda r: r.chip), key=lambda r: r.chip)}
    judged = {chip: judge(rows_of) for chip, rows_of in chips.items()}
    figures = {"left_out_rows": left_out, "chips": {_key(chip): f for chip, (f, _) in judged.items()}}
    return figures, {chip: rates for chip, (_, rates) in judged.items()}


def main() -> None:
    figures, rates = results()
    partial = RATES.with_suffix(".partial")
    partial.write_text(json.dumps(rates, indent=1) + "\n", encoding="utf-8")
    partial.rename(RATES)
    record.write("projection", figures)
    record.write_table("projection.md", "errors", [_table_row(chip, figures["chips"][_key(chip)]) for chip in rates])


def _table_row(chip: str, figures: dict[str, Any]) -> list[str]:
    """Return a chip's row of the page, each figure linked to its place in the record."""
    cells = []
    for key in ("rows", "median_percent", "p90_percent", "run_to_run_percent"):
        value = figures[key]
        link = f'[{value}](evidence/projection.json "chips.{_key(chip)}.{key}")'
        cells.append("one run" if value is None else link)
    return [chip, *cells]


if __name__ == "__main__":
    main()
