"""The powers in machines.toml are those of the published rows, by the rule that the file states."""

import csv
import statistics

import pytest

from anew.errors import UserError
from anew.projection import chip_names
from anew.projection.machine import read_machine
from evidence.projection_rows import CSV


@pytest.mark.parametrize("chip", chip_names())
def test_power_is_that_of_the_published_rows(chip: str) -> None:
    with CSV.open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["device"].startswith("ANE") and r["ane_mw"]]
    rows = [r for r in rows if r["chip"].lower().replace(" ", "-") == chip]
    busiest = max(float(r["ane_mw"]) / 1e3 for r in rows)
    copying = [r for r in rows if r["workload"].startswith("streaming") and float(r["package_w"]) > 0]
    rest = statistics.median(float(r["package_w"]) - float(r["ane_mw"]) / 1e3 for r in copying)
    machine = read_machine(chip)
    assert machine.engine_watts == pytest.approx(busiest, abs=0.006)
    assert machine.host_watts == pytest.approx(rest, abs=0.006)


def test_a_chip_without_facts_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="'m3'"):
        read_machine("m3")
