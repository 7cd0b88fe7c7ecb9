"""The doctor's questions: the emulated engine answers as expected; one that is off shows where, and only there."""

import json

import pytest

import anew
from anew.chips import load_chip, switches_from_report
from anew.cli.main import main
from anew.device.base import DeviceError
from anew.device.emulator.engine import EmulatedEngine
from anew.doctor.examine import PROBES, examine
from anew.doctor.programs import budget, reload
from anew.doctor.timing import timing
from anew.doctor.training import training_step
from anew.errors import UserError
from tests.deviants import Forgetful, InTextOrder, OneOff, Packed

#: Without what takes time: measurements, which differ from nothing; training and the budget are asked in other tests.
QUESTIONS = tuple(probe for probe in PROBES if probe not in (timing, training_step, budget))


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr("anew.doctor.timing.REPEATS", 2)


def deviations(engine):
    report = examine(engine, {}, QUESTIONS)
    return {finding.probe for finding in report.deviations}


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("chip", ["m1", "m5"])
def test_the_emulated_engine_answers_as_expected(chip):
    report = examine(EmulatedEngine(load_chip(chip), numerics="exact"), {"system": "a test"})
    assert report.deviations == []
    assert len({finding.probe for finding in report.findings}) == len(report.findings) > 75
    assert {"training/steps", "programs/budget", "disputed/gqa"} <= {finding.probe for finding in report.findings}


def test_ports_in_the_order_of_the_text():
    found = deviations(InTextOrder(load_chip("m4")))
    assert "ports/order" in found
    assert not {p for p in found if p.startswith("ports/rows")}


def test_packed_rows():
    found = deviations(Packed(load_chip("m4")))
    assert {"ports/rows of 1", "ports/rows of 17", "ports/rows of 48"} <= found
    assert "ports/rows of 32" not in found


@pytest.mark.parametrize(
    ("kind", "factor", "wanted"),
    [
        ("exp", 1.01, {"operations/exp"}),
        ("maximum", 1 + 2**-10, {"operations/maximum"}),
        ("transpose", -1.0, {"operations/transpose"}),
        ("reduce_sum", 0.99, {"operations/reduce_sum"}),
        ("softmax", 1.5, {"operations/softmax", "disputed/softmax_power_of_2"}),
    ],
)
def test_one_operation_that_errs(kind, factor, wanted):
    assert deviations(OneOff(kind, factor)) == wanted


def test_fast_numerics_differ_in_products_alone():
    found = deviations(EmulatedEngine(load_chip("m4"), numerics="fast"))
    assert found
    assert all(p.startswith(("operations/matmul", "operations/conv", "arithmetic/products")) for p in found)


def test_old_weights_under_the_same_text():
    assert deviations(Forgetful(load_chip("m4"))) == {"programs/other weights under one text"}


def test_a_disputed_fact_decided_otherwise():
    chip = load_chip("m4", {"concat_inputs": "refuse", "fp32": "allow"})

    class Other(EmulatedEngine):
        """Thinks as the data file, and does otherwise."""

        def __post_init__(self):
            super().__post_init__()
            self.chip = load_chip("m4")

        def _check(self, violations):
            from anew.chips.check import refused

            for violation in refused(violations):
                if violation.switch != "fp32":
                    raise DeviceError("compile", str(violation))

    assert deviations(Other(chip, numerics="exact")) == {"disputed/fp32"}


def test_a_smaller_budget():
    engine = EmulatedEngine(load_chip("m4"), numerics="exact")

    class Small(EmulatedEngine):
        def _compile(self, text, weights, function):
            if self.statistics.programs >= 40:
                raise DeviceError("load", "no more")
            return super()._compile(text, weights, function)

    small = Small(engine.chip, numerics="exact")
    report = examine(small, {}, (reload, budget))
    assert [(f.probe, f.found) for f in report.deviations] == [("programs/budget", "40 load")]


def test_a_probe_that_fails_as_a_whole_is_a_finding():
    class Broken(EmulatedEngine):
        def _compile(self, text, weights, function):
            raise DeviceError("compile", "nothing compiles today")

    report = examine(Broken(load_chip("m4"), numerics="exact"), {}, QUESTIONS)
    assert "port_order/whole" in {finding.probe for finding in report.deviations}
    assert all("nothing compiles" in f.found for f in report.deviations if f.probe != "programs/budget")


def test_the_command_on_a_machine_without_an_engine(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "training/steps: losses within" in said
    assert "emulator       there" in said


@pytest.mark.usefixtures("brief")
def test_the_report_of_an_engine_decides_switches(llama, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--probe", "--chip", "m2"]) == 0
    said = capsys.readouterr().out
    assert "0 differ; written to anew-doctor.json" in said
    report = json.loads((tmp_path / "anew-doctor.json").read_text())
    assert report["device"] == {"name": "emulator", "emulated": True, "chip": "m2"}
    with pytest.raises(UserError, match="emulated engine"):
        switches_from_report("anew-doctor.json", "m2")
    report["device"] |= {"name": "e5rt", "emulated": False}
    (tmp_path / "real.json").write_text(json.dumps(report))
    switches = switches_from_report("real.json", "m2")
    assert switches["conv_bias"] == "refuse"
    assert switches["gqa"] == "allow"
    model = llama()
    assert anew.compile(model, chip="m2", switches=switches) is model
    with pytest.raises(UserError, match="chip m2, not of m4"):
        switches_from_report("real.json", "m4")
    (tmp_path / "no.json").write_text("[]")
    with pytest.raises(UserError, match=r"no\.json is no report"):
        switches_from_report("no.json", "m4")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--device", "e5rt"], "device 'e5rt' does not open: this is Linux"),
        (["--chip", "m9"], "unknown chip 'm9'"),
        (["--probe", "--report", "nowhere/x.json"], "there is no folder nowhere"),
    ],
)
def test_bad_input_is_one_sentence(words, sentence, capsys):
    assert main(["doctor", *words]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
