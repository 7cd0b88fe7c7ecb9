"""Which device is taken, why, and what a route must pass before it is."""

import json
import signal
import sys

import pytest
import torch

import anew
from anew.chips import load_chip
from anew.device import machine
from anew.device.base import DeviceError
from anew.device.e5rt.operation import E5rtOperation
from anew.device.framework import FrameworkError
from anew.device.recheck import RecheckedDevice
from anew.device.routes import Route
from anew.doctor.check import deviations
from anew.errors import UserError
from anew.frontend import self_check
from anew.frontend.choice import make_device
from anew.frontend.options import Options

LINUX = sys.platform == "linux"


@pytest.fixture
def passes(monkeypatch):
    """Let every self-check pass, as when it passed before."""
    monkeypatch.setattr(self_check, "reason_against", lambda route, chip: None)


@pytest.fixture
def use_routes(monkeypatch):
    """Replace the routes: by name, what opening gives or raises."""

    def use(**opened):
        def route(name, device):
            def open_device(chip):
                if isinstance(device, Exception):
                    raise device
                return device

            return Route(name, f"the {name} route", open_device, lambda: None)

        monkeypatch.setattr("anew.frontend.choice.ROUTES", {n: route(n, d) for n, d in opened.items()})

    return use


@pytest.mark.skipif(not LINUX, reason="about a machine without an engine")
def test_auto_says_why_the_emulator():
    device = make_device(Options())
    assert device.name == "emulator"
    assert device.why.startswith("not e5rt")
    assert device.why.endswith(": this is Linux, and the engine is in Macs with Apple silicon")


@pytest.mark.skipif(not LINUX, reason="about a machine without an engine")
def test_a_named_route_that_is_not_there_is_an_error():
    with pytest.raises(UserError, match=r"device 'e5rt' is not available: this is Linux, and the engine .* everywhere"):
        anew.compile(torch.nn.Linear(2, 2), device="e5rt")


def test_auto_takes_the_first_route_that_opens(passes, use_routes, fake, open_engine):
    engine = open_engine(fake)
    use_routes(first=FrameworkError("load", "dlopen", "dyld", -1, "no such file"), second=engine)
    device = make_device(Options(chip="m4"))
    assert device is engine
    assert device.why == 'not first: load: dlopen failed with dyld code -1; "no such file"'


def test_auto_passes_over_a_route_whose_self_check_fails(monkeypatch, use_routes):
    use_routes(first=None, second=None)
    monkeypatch.setattr(self_check, "_check_apart", lambda route, chip: "its self-check failed: ports differ")
    monkeypatch.setattr(self_check, "_passed", list)
    device = make_device(Options(chip="m4"))
    assert device.name == "emulator"
    assert device.why == "not first or second: its self-check failed: ports differ"


def test_another_chip_than_the_macs_is_refused(monkeypatch, passes, use_routes):
    use_routes(first=None)
    monkeypatch.setattr("anew.frontend.choice.brand", lambda: "Apple M2 Max")
    assert make_device(Options(chip="m4")).why == "not first: this Mac has an m2, and programs for an m4 were asked for"


def test_chips_by_the_name_of_the_processor():
    names = ["Apple M1", "Apple M2 Max", "Apple M5 Pro", "Apple M77", "Intel(R) Core(TM) i7", ""]
    assert [machine.chip_of(name) for name in names] == ["m1", "m2", "m5", "m77", None, None]


@pytest.mark.parametrize("packed", [0, 1])
def test_the_self_check_passes_on_the_fake(make_fake, open_engine, fresh, packed):
    assert deviations(open_engine(make_fake(packed=packed))) == []


def test_the_self_check_finds_ports_in_another_order(fake, open_engine, monkeypatch):
    engine = open_engine(fake)
    execute = E5rtOperation._execute

    def swapped(operation):
        bound = operation.bindings
        if {"y", "z"} <= bound.keys():
            bound["y"], bound["z"] = bound["z"], bound["y"]
        execute(operation)

    monkeypatch.setattr(E5rtOperation, "_execute", swapped)
    assert deviations(engine) == ["ports/order: expected x 16, y -2, z -1; found x 16, y -1, z -2"]


def test_the_self_check_finds_arithmetic_that_is_off(fake, open_engine, monkeypatch, fresh):
    engine = open_engine(fake)
    execute = E5rtOperation._execute

    def drifting(operation):
        execute(operation)
        if len(operation.program.inputs) > 5:
            operation.bindings[operation.program.outputs[0].name].mul_(1.2)

    monkeypatch.setattr(E5rtOperation, "_execute", drifting)
    assert [sentence.split(":")[0] for sentence in deviations(engine)] == ["training/steps"]


def test_a_check_that_passed_is_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    asked = []
    monkeypatch.setattr(self_check, "_check_apart", lambda route, chip: asked.append((route, chip)))
    for chip in ("m4", "m4", "m5"):
        assert self_check.reason_against("e5rt", load_chip(chip)) is None
    assert asked == [("e5rt", "m4"), ("e5rt", "m5")]
    monkeypatch.setattr(self_check, "system_build", lambda: "Darwin 99")
    self_check.reason_against("e5rt", load_chip("m4"))
    assert len(asked) == 3
    assert len(json.loads((tmp_path / "anew" / "self_checks.json").read_text())) == 3


def test_a_check_that_aborts_or_hangs_is_a_reason(monkeypatch):
    killed = f"import os; os.kill(os.getpid(), {int(signal.SIGABRT)})"
    real = self_check.subprocess.run

    def run_instead(code):
        def run(command, **options):
            return real([sys.executable, "-c", code], **options)

        monkeypatch.setattr(self_check.subprocess, "run", run)

    run_instead(killed)
    assert self_check._check_apart("e5rt", "m4") == "its self-check ended by signal 6"
    run_instead("print('one'); print('ports differ'); raise SystemExit(1)")
    assert self_check._check_apart("e5rt", "m4") == "its self-check failed: ports differ"
    monkeypatch.setattr(self_check, "LIMIT_SECONDS", 0.2)
    run_instead("import time; time.sleep(60)")
    assert self_check._check_apart("e5rt", "m4") == "its self-check did not end within 0.2 s"


def test_every_nth_run_is_compared_with_the_emulator(fake, open_engine, monkeypatch):
    device = RecheckedDevice(open_engine(fake), every=3)
    program = device.compile(*_square())
    operation, shape = program.operation(), (2, 40)
    buffers = {name: device.buffers.lease(shape) for name in "xy"}
    buffers["x"].fill_(3.0)
    operation.bind(buffers)
    execute = E5rtOperation._execute

    def wrong(operation):
        execute(operation)
        operation.bindings["y"].mul_(2)

    operation.execute()
    monkeypatch.setattr(E5rtOperation, "_execute", wrong)
    operation.execute()
    assert buffers["y"].unique().tolist() == [18.0]  # not looked at
    with pytest.raises(DeviceError, match=r"execute: output 'y' of run 3 deviates .* by 100\.0%"):
        operation.execute()
    monkeypatch.undo()
    for _ in range(3):
        operation.execute()
    assert buffers["y"].unique().tolist() == [9.0]
    assert device.statistics.dispatches == 6
    program.release()
    assert device.statistics.programs == 0


def test_options_with_recheck():
    with pytest.raises(UserError, match="option 'recheck' is a number of runs, or 0 for none, not -1"):
        Options(recheck=-1)


def _square():
    from anew.mil import Builder, print_program

    b = Builder()
    return print_program(b.program([b.op("square", "y", x=b.input("x", (2, 40)))]))
