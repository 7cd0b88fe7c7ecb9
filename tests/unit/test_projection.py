"""Projected times: work adds, more work never takes less time, the rates in the package are those the fit gives."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anew.errors import UserError
from anew.projection import (
    Work,
    activation,
    chip_names,
    convolution,
    from_memory,
    layer_norm,
    matmul,
    read_rates,
    reduction,
    scaled_names,
    streamed,
)
from anew.projection.machine import read_machine
from evidence import projection, record
from evidence.projection_rows import read_rows

CHIPS = ("m1", "m1-max", "m2-pro", "m4", "m5", "m5-pro")
SIZES = st.integers(1, 16384)


def test_every_measured_chip_has_rates() -> None:
    assert set(chip_names()) == set(CHIPS)


def test_chip_without_measurements_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"'m9'.*m4-max"):
        read_rates("m9")


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


def test_what_fits_on_the_engine_is_not_fetched_again() -> None:
    assert streamed(1e6).fetched == 0
    assert streamed(32e6).fetched == pytest.approx(16e6)
    assert from_memory(1e6).fetched == 1e6
    assert streamed(1e6, of=32e6).fetched == pytest.approx(0.5e6)


def test_a_rate_nobody_measured_is_named_and_that_of_the_same_engine() -> None:
    assert read_rates("m1-max").extrapolated(layer_norm(10)) == ("norm",)
    assert read_rates("m1-max").seconds.norm == read_rates("m1").seconds.norm
    assert read_rates("m4").extrapolated(layer_norm(10)) == ()


@pytest.mark.parametrize("chip", scaled_names())
def test_scaled_chips_have_the_rates_of_the_chip_they_are_like(chip: str) -> None:
    rates = read_rates(chip)
    assert rates.scaled is not None
    like = read_rates(rates.scaled.like)
    products = Work(matmul=1e9)
    assert rates.time(products) == pytest.approx(rates.scaled.engine * like.time(products))
    assert rates.seconds.read == pytest.approx(rates.scaled.copies * like.seconds.read)
    assert rates.error == like.error
    assert read_machine(chip).memory_gb_s == rates.scaled.memory_gb_s


def test_products_are_projected_no_faster_than_their_engine_was_measured() -> None:
    for chip in CHIPS:
        assert read_rates(chip).seconds.matmul >= 1e-12 / read_machine(chip).engine_peak_tflops * 0.999


def test_every_row_has_a_class_and_no_residual_decides_it() -> None:
    rows, left_out = read_rows()
    kinds = {row.workload: row.kind for row in rows}
    assert kinds["matmul M=K=N=2048"] == "engine"
    assert kinds["softmax shape=[256, 4096]"] == "copy"
    assert kinds["stencil 5pt (256x256, steps=32)"] == "fused"
    assert kinds["decode 8L d=2048 ff=8192 s_kv=256 batch=1"] == "decode"
    assert set(left_out) == {"ane_cost_model", "device_compare_wattcomplete"}


def test_programs_of_several_operations_hold_what_their_scripts_build() -> None:
    rows = {(row.chip, row.workload): row.work for row in read_rows()[0]}
    attention = rows["m4", "attention longseq (S=512,D=768,H=12)"]
    assert attention.matmul == 4 * 2 * 512 * 768**2 + 2 * 2 * 12 * 512**2 * 64
    assert attention.attention == 12 * 512**2
    full, quick = (rows[c, "decode 8L d=2048 ff=8192 s_kv=256 batch=1"] for c in ("m4", "m5"))
    assert full.weight_bytes == 2 * (8 * (4 * 2048**2 + 3 * 2048 * 8192) + 32000 * 2048)
    assert quick.weight_bytes == 2 * (4 * (4 * 1024**2 + 3 * 1024 * 4096) + 32000 * 1024)
    assert rows["m4", "decode 8L d=2048 ff=8192 s_kv=256 batch=1, int8"].weight_bytes == full.weight_bytes / 2
    assert activation(5) == Work(read=5, write=5, activation=5)


def test_rates_and_record_are_what_the_fit_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the pull that was chosen; errors at the others are left to `python -m evidence projection`."""
    monkeypatch.setattr(projection, "PULLS", (projection.PULL,))
    figures, rates = projection.results()
    kept = record.read("projection")
    for chip, found in figures["chips"].items():
        assert found["by_pull"]
        kept["chips"][chip]["by_pull"] = {name: kept["chips"][chip]["by_pull"][name] for name in found["by_pull"]}
    assert kept == json.loads(json.dumps(figures | {"scaled": projection.scaled()}))
    for chip, entry in rates.items():
        kept = dataclasses.asdict(read_rates(chip).seconds)
        assert kept == pytest.approx(entry["seconds"], rel=1e-3)


@pytest.mark.parametrize("chip", CHIPS)
def test_workloads_left_out_are_projected_within_the_bound(chip: str) -> None:
    figures = record.read("projection")["chips"][chip.replace("-", "_")]
    assert figures["median_percent"] <= max(15, figures["run_to_run_percent"] or 0)
    assert figures["p90_percent"] <= 35
