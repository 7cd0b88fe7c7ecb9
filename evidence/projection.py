"""Fit the rates of each chip to the published rows, judge them on workloads left out, and write them down.

Each rate is at least 0, and products are no faster than the most that their engine was measured to reach. The fit
minimises relative errors; a weak pull towards one starting guess for all chips keeps a rate that few rows contain from
running away. Copies have a rate of their own in the rows of earlier reports, whose host code is not the later one's.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from anew.projection import Rates, Work, activation, convolution, matmul, read_rates
from anew.projection.machine import read_machine
from evidence import record
from evidence.projection_rows import Row, read_rows

RATES = Path(__file__).resolve().parent.parent / "src" / "anew" / "projection" / "rates.json"
#: Seconds a unit before any row is seen: 0.1 ms a dispatch, 0.2 ns an element copied or worked on by itself, 0.02 ns
#: in a program of several operations, 12 TFLOPS of matmul and 18 of convolution, 100 GB/s of operands and as much again
#: for those that come from memory: the order of what was published for M4 and M5.
GUESS = Work(
    dispatches=1e-4,
    read=2e-10,
    write=2e-10,
    matmul=1 / 12e12,
    spilled=1 / 12e12,
    convolution=1 / 18e12,
    weight_bytes=1e-11,
    fetched=1e-11,
    activation=2e-10,
    softmax=2e-10,
    norm=1e-9,
    elementwise=2e-11,
    attention=2e-10,
)
#: Weight of a guess, where a row's is 1. It was lowered from 0.1 after a first look at the left-out errors: at 0.1 the
#: guess, far too fast for the M1's host copies, held its rates back. The record gives the errors at each of PULLS.
PULL = 0.03
PULLS = (0.1, 0.03, 0.01)
NAMES = tuple(f.name for f in dataclasses.fields(Work))
COPIED = (NAMES.index("read"), NAMES.index("write"))
#: Chips of one engine: what no row of the first measures has the rate of the second.
SAME_ENGINE = {"m1": "m1-max", "m1-max": "m1", "m5": "m5-pro", "m5-pro": "m5"}
#: Of the engines that compute a convolution of 3x3 by Winograd's algorithm, how many multiplications that saves.
WINOGRAD = {"m5": 2.25, "m5-pro": 2.25}


@dataclass(frozen=True)
class Fitted:
    """Rates of a chip, and the same with the copies of the earlier host code."""

    rates: Work
    earlier: Work

    def time(self, row: Row) -> float:
        """Return the projected time of a row, in seconds."""
        rates = self.earlier if row.earlier else self.rates
        return float(np.dot(dataclasses.astuple(rates), dataclasses.astuple(row.work)))


def fit(rows: list[Row], pull: float = PULL) -> Fitted:
    """Return the rates with the least sum of squared relative errors, by coordinate descent; all rows of one chip."""
    guess = np.array(dataclasses.astuple(GUESS) + tuple(dataclasses.astuple(GUESS)[i] for i in COPIED))
    apart = len({r.earlier for r in rows}) > 1
    amounts = np.array([_amounts(r, apart) for r in rows]) / np.array([[r.seconds] for r in rows])
    design = np.vstack([amounts * guess, pull * np.eye(len(guess))])
    target = np.concatenate([np.ones(len(rows)), np.full(len(guess), pull)])
    gram, right = design.T @ design, design.T @ target
    least, factors = _least(rows[0].chip, guess), np.ones(len(guess))
    for _ in range(1000):
        before = factors.copy()
        for j in range(len(guess)):
            factors[j] = max(least[j], factors[j] + (right[j] - gram[j] @ factors) / gram[j, j])
        if np.array_equal(factors, before):
            break
    found = [float(x) for x in factors * guess]
    rates = Work(*found[: len(NAMES)])
    earlier = dict(zip((NAMES[i] for i in COPIED), found[len(NAMES) :], strict=True))
    return Fitted(rates, dataclasses.replace(rates, **earlier) if apart else rates)


def _amounts(row: Row, apart: bool) -> list[float]:
    """The amounts of a row, with columns of their own for the copies of the earlier host code."""
    amounts = list(dataclasses.astuple(row.work))
    copies = [amounts[i] for i in COPIED]
    if not (apart and row.earlier):
        return [*amounts, 0.0, 0.0]
    return [*(0.0 if i in COPIED else a for i, a in enumerate(amounts)), *copies]


def _least(chip: str, guess: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The least factor of each guess."""
    fastest = 1e-12 / read_machine(chip).engine_peak_tflops
    least = np.zeros(len(guess))
    for name, gain in (("matmul", 1.0), ("convolution", WINOGRAD.get(chip, 1.0))):
        least[NAMES.index(name)] = fastest / gain / guess[NAMES.index(name)]
    return least


def left_out_ratios(rows: list[Row], pull: float = PULL) -> dict[str, list[float]]:
    """Return measured over projected time by workload, all runs of it left out of the fit that projects it."""
    ratios: dict[str, list[float]] = {}
    for workload in sorted({r.workload for r in rows}):
        fitted = fit([r for r in rows if r.workload != workload], pull)
        ratios[workload] = [r.seconds / fitted.time(r) for r in rows if r.workload == workload]
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
    by_pull = {p: left_out_ratios(rows, p) for p in PULLS}
    ratios = by_pull[PULL]
    spread = run_to_run(rows)
    kinds = {r.workload: r.kind for r in rows}
    classes = sorted(set(kinds.values()))
    rates = fit(rows).rates
    figures = {
        "rows": len(rows),
        "streaming_gb_s": round(1e-9 / (rates.weight_bytes + rates.fetched), 1),
        **errors_percent(ratios),
        "run_to_run_percent": None if spread is None else round(100 * spread, 1),
        "rows_by_class": {kind: sum(r.kind == kind for r in rows) for kind in classes},
        "by_pull": {f"pull_{int(1000 * p)}_thousandths": errors_percent(found) for p, found in by_pull.items()},
        "workloads": {
            w: {"kind": kinds[w], "measured_over_projected": [round(x, 3) for x in group]}
            for w, group in ratios.items()
        },
    }
    low, high = np.quantile([x for group in ratios.values() for x in group], [0.1, 0.9])
    present = np.sum([dataclasses.astuple(r.work) for r in rows], axis=0)
    unmeasured = [name for name, amount in zip(NAMES, present, strict=True) if amount == 0]
    seconds = {k: float(f"{v:.4g}") for k, v in dataclasses.asdict(rates).items()}
    return figures, {
        "seconds": seconds,
        "error": [round(float(low), 3), round(float(high), 3)],
        "unmeasured": unmeasured,
    }


def borrow(rates: dict[str, Any]) -> None:
    """Give what no row of a chip measures the rate of the chip with the same engine, where that has one."""
    for chip, entry in rates.items():
        other = rates.get(SAME_ENGINE.get(chip, ""))
        for name in entry["unmeasured"]:
            if other and name not in other["unmeasured"]:
                entry["seconds"][name] = other["seconds"][name]


#: ANEForge's published headlines (ROOFLINES.md): largest rates of the sweeps, TFLOPS, and streaming bandwidth, GB/s.
HEADLINES = {
    "m1-air": {"gemm": 4.33, "streaming": 5.4},
    "m2-max": {"gemm": 5.38},
    "m4-pro": {"gemm": 6.20},
    "m4-max": {"gemm": 8.87, "streaming": 23.0},
    "m5-pro": {"gemm": 10.04, "convolution": 18.8, "streaming": 24.1},
    "m6": {"gemm": 10.77, "convolution": 23.1},
}
HEADLINE_NAMES = {
    "gemm": "largest GEMM, TFLOPS",
    "convolution": "largest convolution, TFLOPS",
    "streaming": "streaming (relu), GB/s",
}
GEMM_SIZES = (512, 1024, 2048, 4096)
#: Channels and batch of the largest convolutions of the full sweep, 3x3 at 64x64.
CONVOLUTIONS = ((64, 16), (128, 16), (256, 8), (512, 4))
STREAMED = (8192, 4096)


def headlines(rates: Rates) -> dict[str, float]:
    """Return what the headline figures of a chip should be by its rates."""

    def rate(work: Work, copied: int) -> float:
        whole = work + Work(dispatches=1, read=copied, write=copied)
        return (work.matmul + work.convolution) / rates.time(whole) / 1e12

    elements = STREAMED[0] * STREAMED[1]
    return {
        "gemm": max(rate(matmul(n, n, n), n * n) for n in GEMM_SIZES),
        "convolution": max(rate(convolution(b, c, 4096, 9), b * c * 4096) for c, b in CONVOLUTIONS),
        "streaming": 4e-9 * elements / rates.time(activation(elements) + Work(dispatches=1)),
    }


def scaled() -> dict[str, Any]:
    """Return, of each chip with published headlines, those beside what its rates give, and by how much that misses."""
    found = {}
    for chip, published in HEADLINES.items():
        given = headlines(read_rates(chip))
        found[_key(chip)] = {
            name: {
                "published": value,
                "projected": round(given[name], 2),
                "miss_percent": round(100 * (given[name] / value - 1), 1),
            }
            for name, value in published.items()
        }
    return found


def _key(chip: str) -> str:
    """Return a chip's name as a key that pages can quote."""
    return chip.replace("-", "_")


def results() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures of the record and the contents of rates.json."""
    rows, left_out = read_rows()
    chips = {c: list(g) for c, g in groupby(sorted(rows, key=lambda r: r.chip), key=lambda r: r.chip)}
    judged = {chip: judge(rows_of) for chip, rows_of in chips.items()}
    figures = {"left_out_rows": left_out, "chips": {_key(chip): f for chip, (f, _) in judged.items()}}
    rates = {chip: entry for chip, (_, entry) in judged.items()}
    borrow(rates)
    return figures, rates


def main() -> None:
    figures, rates = results()
    partial = RATES.with_suffix(".partial")
    partial.write_text(json.dumps(rates, indent=1) + "\n", encoding="utf-8")
    partial.rename(RATES)
    record.write("projection", figures | {"scaled": scaled()})
    record.write_table("projection.md", "scaled", list(_scaled_rows()))
    record.write_table("projection.md", "errors", [_table_row(chip, figures["chips"][_key(chip)]) for chip in rates])


def _scaled_rows() -> Iterator[list[str]]:
    """Return the rows of the page about headlines, each figure linked to its place in the record."""
    for chip, names in scaled().items():
        for name, figures in names.items():
            place = f"scaled.{chip}.{name}"
            quoted = [f'[{value}](evidence/projection.json "{place}.{key}")' for key, value in figures.items()]
            yield [chip.replace("_", "-"), HEADLINE_NAMES[name], *quoted]


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
