"""The powers in machines.toml are those of the published rows, by the rule that the file states."""

import csv
import statistics

import pytest

from anew.errors import UserError
from anew.projection import chip_names
from anew.projection.machine import read_machine
from evidence.projection_rows import CSV, REPORTS

#: Chips without rows of relu, or of copies by the CPU, and whose figures they have.
LIKE = {"m5-pro": "m5"}


def measured() -> list[dict[str, str]]:
    rows = []
    for path in (CSV, REPORTS):
        with path.open(encoding="utf-8", newline="") as file:
            rows += list(csv.DictReader(file))
    return [r | {"chip": r["chip"].lower().replace(" ", "-")} for r in rows]


@pytest.mark.parametrize("chip", chip_names())
def test_a_copy_takes_the_cpu_what_its_fastest_row_says(chip: str) -> None:
    rows = [r for r in measured() if r["device"] == "CPU" and r["chip"] == LIKE.get(chip, chip)]
    copies = [float(r["latency_ms"]) for r in rows if r["workload"] == "gelu (light compute) shape=[8192, 4096]"]
    assert read_machine(chip).copy_ms == pytest.approx(min(copies), abs=0.006)


@pytest.mark.parametrize("chip", chip_names())
def test_power_is_that_of_the_published_rows(chip: str) -> None:
    rows = [r for r in measured() if r["device"].startswith("ANE") and r["ane_mw"]]
    busiest = max(float(r["ane_mw"]) / 1e3 for r in rows if r["chip"] == chip)
    like = LIKE.get(chip, chip)
    copying = [r for r in rows if r["chip"] == like and r["workload"].startswith("streaming")]
    copying = [r for r in copying if float(r["package_w"]) > 0]
    rest = statistics.median(float(r["package_w"]) - float(r["ane_mw"]) / 1e3 for r in copying)
    machine = read_machine(chip)
    assert machine.engine_watts == pytest.approx(busiest, abs=0.006)
    assert machine.host_watts == pytest.approx(rest, abs=0.006)


def test_a_chip_without_facts_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="'m9'"):
        read_machine("m9")
