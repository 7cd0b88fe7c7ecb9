"""Energy by rail, on stand-ins with the interfaces of zeus_apple_silicon 1.1 and zeus 0.16."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

import anew
from anew import energy
from anew.energy import NOT_INSTALLED, RAILS, find_source, measure


@pytest.fixture
def install(monkeypatch):
    """Put a module with a monitor class in the place of a library, and leave the others out."""

    def place(module, name, monitor):
        found = ModuleType(module)
        setattr(found, name, monitor)
        monkeypatch.setitem(sys.modules, module, found)

    find_source.cache_clear()
    for module in ("zeus_apple_silicon", "zeus", "zeus.monitor"):
        monkeypatch.setitem(sys.modules, module, None)  # as when it is not installed
    yield place
    find_source.cache_clear()


def apple(**millijoules):
    """A monitor class like AppleEnergyMonitor; each window takes so many millijoules. Labels are unique while open."""

    class Monitor:
        def __init__(self):
            self.open = set()

        def begin_window(self, label):
            if label in self.open:
                raise RuntimeError(f"window {label} is open")
            self.open.add(label)

        def end_window(self, label):
            self.open.remove(label)
            return SimpleNamespace(**({"ane_mj": None, "gpu_mj": None, "dram_mj": None} | millijoules))

    return Monitor


def test_rails_of_apple_silicon(install):
    install("zeus_apple_silicon", "AppleEnergyMonitor", apple(ane_mj=1500, cpu_total_mj=6000, gpu_mj=20, dram_mj=250))
    with anew.measure() as taken:
        assert taken.joules == dict.fromkeys(RAILS)
    assert taken.joules == {"ane": 1.5, "cpu": 6.0, "gpu": 0.02, "dram": 0.25}
    assert taken.total == pytest.approx(7.77)
    assert taken.watts["ane"] == pytest.approx(1.5 / taken.seconds)
    assert (taken.source, taken.unavailable) == ("zeus-apple-silicon", {})


def test_a_rail_that_is_absent_or_stands_still_is_unavailable_and_never_0_watt(install):
    install("zeus_apple_silicon", "AppleEnergyMonitor", apple(ane_mj=0, cpu_total_mj=6000))
    with measure() as taken:
        pass
    assert taken.joules == {"ane": None, "cpu": 6.0, "gpu": None, "dram": None}
    assert taken.watts["ane"] is taken.watts["gpu"] is None
    assert taken.unavailable == {
        "ane": "its counter stood still",
        "gpu": "this machine has no such counter",
        "dram": "this machine has no such counter",
    }
    assert "ane unavailable, cpu " in str(taken)
    assert "0.00 W" not in str(taken)


def test_blocks_nest_and_one_that_raises_is_closed(install):
    monitor = apple(cpu_total_mj=1000)
    install("zeus_apple_silicon", "AppleEnergyMonitor", monitor)
    with measure() as outer, measure() as inner:
        pass
    assert outer.joules["cpu"] == inner.joules["cpu"] == 1.0
    assert outer.seconds >= inner.seconds
    with pytest.raises(KeyError), measure() as taken:
        raise KeyError
    assert taken.joules["cpu"] == 1.0
    assert find_source().monitor.open == set()


def zeus(soc=None):
    class Monitor:
        def begin_window(self, key, sync_execution=True):
            self.key = key

        def end_window(self, key, sync_execution=True, cancel=False):
            assert key == self.key
            return SimpleNamespace(
                time=1.0, gpu_energy={0: 3.0, 1: 4.0}, cpu_energy={0: 2.0}, dram_energy=None, soc_energy=soc
            )

    return Monitor


def test_other_machines_through_zeus(install):
    install("zeus", "monitor", None)
    install("zeus.monitor", "ZeusMonitor", zeus())
    with measure() as taken:
        pass
    assert taken.joules == {"ane": None, "cpu": 2.0, "gpu": 7.0, "dram": None}
    assert taken.source == "zeus"


def test_apples_own_counters_through_zeus(install):
    install("zeus", "monitor", None)
    install("zeus.monitor", "ZeusMonitor", zeus(SimpleNamespace(ane_mj=7, cpu_total_mj=9, gpu_mj=0, dram_mj=None)))
    with measure() as taken:
        pass
    assert taken.joules == {"ane": 0.007, "cpu": 0.009, "gpu": None, "dram": None}


def test_without_a_library_the_reason_says_what_to_install(install):
    with measure() as taken:
        pass
    assert taken.joules == dict.fromkeys(RAILS)
    assert taken.unavailable == dict.fromkeys(RAILS, NOT_INSTALLED)
    assert (taken.source, taken.total) == ("", None)
    assert taken.seconds >= 0


def test_a_library_without_counters_here_says_so(install):
    class Refuses:
        def __init__(self):
            raise RuntimeError("Failed to get channels of Energy Model")

    install("zeus_apple_silicon", "AppleEnergyMonitor", Refuses)
    with measure() as taken:
        pass
    assert set(taken.unavailable.values()) == {"zeus-apple-silicon: Failed to get channels of Energy Model"}


@pytest.mark.parametrize("method", ["begin_window", "end_window"])
def test_a_counter_that_fails_does_not_stop_the_work(install, method):
    monitor = apple(cpu_total_mj=1)

    def fail(self, label):
        raise RuntimeError("the subscription is gone")

    setattr(monitor, method, fail)
    install("zeus_apple_silicon", "AppleEnergyMonitor", monitor)
    with measure() as taken:
        done = True
    assert done
    assert set(taken.unavailable.values()) == {"RuntimeError: the subscription is gone"}


def test_the_rails_have_one_definition():
    assert set(energy._read_apple(SimpleNamespace(ane_mj=1, cpu_total_mj=1, gpu_mj=1, dram_mj=1))) == set(RAILS)
