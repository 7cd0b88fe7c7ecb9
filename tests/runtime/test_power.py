"""Power of a Mac: what holds it back, asked on the fake of Foundation, and a guard against sleep during runs."""

import ctypes
import os
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from anew.device import power as module
from anew.device.framework import FrameworkWarning
from anew.device.objc import Runtime
from anew.device.power import Power, kept_awake, power
from anew.doctor.machine import describe_machine
from anew.train import conduct
from anew.train.record import machine


@pytest.fixture
def runtime(make_classes):
    fake = make_classes()
    yield Runtime([str(fake.path)])
    for name in ("fake_low_power", "fake_thermal_state"):
        ctypes.c_int.in_dll(fake.library, name).value = 0


def set_state(runtime, low_power, thermal):
    (library,) = runtime.libraries
    ctypes.c_int.in_dll(library, "fake_low_power").value = low_power
    ctypes.c_int.in_dll(library, "fake_thermal_state").value = thermal


@pytest.mark.parametrize(
    ("low_power", "thermal", "state", "said"),
    [
        (0, 0, "nominal", ""),
        (0, 1, "fair", ""),
        (1, 1, "fair", "low-power mode is on"),
        (1, 3, "critical", "low-power mode is on and its thermal state is critical"),
        (0, 7, "unknown (7)", "its thermal state is unknown (7)"),
    ],
)
def test_what_holds_a_mac_back(runtime, low_power, thermal, state, said):
    set_state(runtime, low_power, thermal)
    found = power(runtime)
    assert found == Power(bool(low_power), state)
    assert str(found) == (f"this Mac is slower than it could be: {said}" if said else "")


def test_a_system_that_does_not_say_is_a_warning(make_classes, runtime, monkeypatch):
    monkeypatch.setitem(module.METHODS, "-[NSProcessInfo thermalState]", "B16@0:8")
    with pytest.warns(
        FrameworkWarning, match=r"thermalState. is encoded 'q16@0:8' .* low-power mode is on is not known"
    ):
        assert power(runtime) is None


def test_off_a_mac_there_is_nothing_to_say():
    assert power() is None
    assert "low_power_mode" not in describe_machine() | machine()


class Lines(list):
    say = list.append

    def start(self, *_):
        pass

    stop = stopping = start


def test_a_run_says_it_at_its_beginning_or_end_and_records_it(monkeypatch):
    states = [Power(False, "nominal"), Power(True, "serious")]
    monkeypatch.setattr(conduct, "power", lambda: states.pop(0))
    monkeypatch.setattr("anew.train.record.power", lambda: Power(True, "fair"))
    lines = Lines()
    for _ in range(2):
        conduct._say_what_slows(type("Loop", (), {"display": lines}))
    assert lines == [
        "Power      this Mac is slower than it could be: low-power mode is on and its thermal state is serious"
    ]
    assert (machine()["low_power_mode"], machine()["thermal_state"]) == (True, "fair")


@pytest.fixture
def guard(monkeypatch, tmp_path):
    """In the place of caffeinate a script that notes its arguments and its process, and waits."""
    script, notes = tmp_path / "caffeinate", tmp_path / "notes"
    script.write_text(f'#!/bin/sh\necho "$$ $@" > {notes}.partial\nmv {notes}.partial {notes}\nexec sleep 60\n')
    script.chmod(0o755)
    monkeypatch.setattr(module, "CAFFEINATE", str(script))
    monkeypatch.setattr(sys, "platform", "darwin")
    return notes


def test_a_mac_is_kept_awake_until_the_block_ends(guard):
    with suppress(KeyError), kept_awake():
        for _ in range(500):
            if guard.exists():
                break
            time.sleep(0.01)
        process, *arguments = guard.read_text().split()
        assert arguments == ["-i", "-w", str(os.getpid())]
        os.kill(int(process), 0)
        raise KeyError("a run that fails")
    with pytest.raises(ProcessLookupError):
        os.kill(int(process), 0)


def test_without_the_command_a_run_goes_on(guard, monkeypatch):
    monkeypatch.setattr(module, "CAFFEINATE", "/nonexistent/caffeinate")
    with pytest.warns(UserWarning, match="No such file or directory; this Mac may fall asleep"), kept_awake():
        pass


def test_elsewhere_no_process_is_started(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    with kept_awake():
        pass
