"""Projected times: work adds, more work never takes less time, the rates in the package are those the fit gives."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anew.errors import UserError
from anew.projection import Work, chip_names, convolution, layer_norm, matmul, read_rates, reduction
from evidence import projection, record
from evidence.projection_rows import read_rows

CHIPS = ("m1", "m1-max", "m2-pro", "m4", "m5")
SIZES = st.integers(1, 16384)


def test_every_measured_chip_has_rates() -> None:
    assert set(chip_names()) == set(CHIPS)


def test_chip_without_measurements_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="'m3'"):
        read_rates("m3")


@given(st.sampled_from(CHIPS), SIZES, SIZES, SIZES, SIZES)
def test_a_larger_matmul_never_takes_less(chip: str, rows: int, inner: int, columns: int, more: int) -> None:
    rates = read_rates(chip)
    small = rates.time(matmul(rows, inner, columns))
    assert small <= rates.time(matmul(rows + more, inner, columns)) * (1 + 1e-9)
    assert small <= rates.time(matmul(rows, inner + more, columns)) * (1 + 1e-9)
    assert small <= rates.time(matmul(rows, inner, columns + more)) * (1 + 1e-9)


@given(st.sampled_from(CHIPS), SIZES, st.integers(1, 1000))
def test_time_is_additive(chip: str, size: int, times: int) -> None:
    rates = read_rates(chip)
    one = Work(dispatches=1) + matmul(256, size, 768) + reduction(size, 64)
    assert rates.time(one * times) == pytest.approx(times * rates.time(one))
    assert rates.time(one + one) == pytest.approx(2 * rates.time(one))
    assert sum(rates.parts(one).values()) == pytest.approx(rates.time(one))


def test_amounts_of_known_programs() -> None:
    assert matmul(2, 3, 5).matmul == 2 * 2 * 3 * 5
    assert matmul(2, 3, 5).spilled == 0
    assert convolution(2, 64, 100, 9).convolution == 2 * 2 * 64 * 64 * 9 * 100


def test_a_rate_nobody_measured_is_named() -> None:
    assert read_rates("m1").extrapolated(layer_norm(10)) == ("norm",)
    assert read_rates("m4").extrapolated(layer_norm(10)) == ()


def test_every_row_has_a_kind_and_no_residual_decides_it() -> None:
    rows, left_out = read_rows()
    kinds = {row.workload: row.kind for row in rows}
    assert kinds["matmul M=K=N=2048"] == "engine"
    assert kinds["softmax shape=[256, 4096]"] == "copy"
    assert set(left_out) == {"decode_measurement", "device_compare_wattcomplete"}


def test_rates_and_record_are_what_the_fit_gives() -> None:
    figures, rates = projection.results()
    assert record.read("projection") == json.loads(json.dumps(figures))
    for chip, entry in rates.items():
        kept = dataclasses.asdict(read_rates(chip).seconds)
        assert kept == pytest.approx(entry["seconds"], rel=1e-3)


@pytest.mark.parametrize("chip", CHIPS)
def test_workloads_left_out_are_projected_within_the_bound(chip: str) -> None:
    figures = record.read("projection")["chips"][chip.replace("-", "_")]
    assert figures["median_percent"] <= max(15, figures["run_to_run_percent"] or 0)
    assert figures["p90_percent"] <= 35
