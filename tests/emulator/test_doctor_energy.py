"""The doctor's question about energy counters, on stand-ins of the libraries that read them."""

from types import SimpleNamespace

import pytest

from anew.chips import load_chip
from anew.device.emulator.engine import EmulatedEngine
from anew.doctor import energy as module
from anew.energy import NOT_INSTALLED, RAILS, Source, _read_apple

ABSENT = {"ane_mj": None, "cpu_total_mj": None, "gpu_mj": None, "dram_mj": None}


@pytest.fixture
def probe(monkeypatch):
    """Ask an engine while counters give these millijoules: in the window of rest, then in that of the load."""
    monkeypatch.setattr(module, "SECONDS", 0.02)

    def ask(rest, load, emulated=True):
        windows = [SimpleNamespace(**ABSENT | rest), SimpleNamespace(**ABSENT | load)]
        monitor = SimpleNamespace(begin_window=lambda label: None, end_window=lambda label: windows.pop(0))
        source = Source("a stand-in", monitor, _read_apple)
        monkeypatch.setattr("anew.energy.find_source", lambda: source)
        monkeypatch.setattr(module, "find_source", lambda: source)
        engine = EmulatedEngine(load_chip("m4"))
        engine.emulated = emulated
        found = {f.probe: f for f in module.energy(engine)}
        assert list(found) == [f"energy/{rail}" for rail in RAILS]
        assert {f.verdict for f in found.values()} == {"measured"}
        assert engine.statistics.programs == 0
        return {name.removeprefix("energy/"): f for name, f in found.items()}

    return ask


def test_rails_that_follow_the_load_are_measured(probe):
    found = probe({"ane_mj": 1, "cpu_total_mj": 20}, {"ane_mj": 90, "cpu_total_mj": 30, "gpu_mj": 5}, emulated=False)
    assert found["ane"].raw["watts"] > found["ane"].raw["rest_watts"] > 0
    assert " W under load, " in found["ane"].found
    assert found["gpu"].found.endswith(" W under load, unavailable at rest")


def test_a_rail_that_is_absent_or_reads_0_under_load_is_unavailable_and_never_0_watt(probe):
    found = probe({"ane_mj": 4}, {"ane_mj": 0, "cpu_total_mj": 30}, emulated=False)
    assert found["ane"].found == "unavailable: its counter stood still"
    assert found["dram"].found == "unavailable: this machine has no such counter"
    assert found["ane"].raw["watts"] is found["dram"].raw["watts"] is None


@pytest.mark.parametrize(("emulated", "rail"), [(True, "cpu"), (False, "ane")])
def test_the_rail_that_works_has_to_follow_the_load(probe, emulated, rail):
    found = probe({"ane_mj": 800, "cpu_total_mj": 800, "gpu_mj": 800}, dict.fromkeys(ABSENT, 1), emulated)
    assert found[rail].found.startswith("unavailable: its counter does not follow the load")
    assert found[rail].raw["watts"] is None
    assert all(found[other].raw["watts"] for other in RAILS if other != rail)


def test_without_a_library_nothing_is_loaded(monkeypatch):
    monkeypatch.setattr(module, "find_source", lambda: NOT_INSTALLED)
    engine = EmulatedEngine(load_chip("m4"))
    assert [f.found for f in module.energy(engine)] == [f"unavailable: {NOT_INSTALLED}"] * 4
    assert engine.statistics.compiles == 0
