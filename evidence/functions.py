"""The calibrated operations against their published errors; each deviation stated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from evidence import record
from evidence.function_figures import Figure, composed_figures, row_figures, sweep_figures


def compare(figures: Iterator[Figure]) -> dict[str, dict[str, Any]]:
    """Each figure's published and emulated error and how far they are apart, by a name that a page can quote."""
    rows = {}
    for figure in figures:
        emulated = figure.compute()
        name = f"{figure.name} {figure.chips}".replace(" ", "_").replace(",", "")
        rows[name] = {
            "published": figure.published,
            "emulated": emulated,
            "deviation": emulated / figure.published - 1,
        }
    return rows


def main() -> None:
    """Compute all figures and write the record."""
    groups = {"tables": sweep_figures(), "rows": row_figures(), "composed": composed_figures()}
    figures: dict[str, Any] = {name: compare(group) for name, group in groups.items()}
    for name in groups:
        figures[f"worst_{name}"] = max(abs(row["deviation"]) for row in figures[name].values())
    record.write("functions", figures)
