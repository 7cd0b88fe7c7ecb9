"""The doctor's questions through both routes: what a test seeds behind a fake is found, exactly that, and nothing else.

The deviations are those that tests/emulator/test_doctor.py finds on the emulated engine itself; here the route's own
work lies between: its ports, its strides, its loads.
"""

import warnings

import pytest

from anew.chips import load_chip
from anew.device.framework import FrameworkWarning
from anew.doctor.examine import PROBES, examine
from anew.doctor.programs import budget
from anew.doctor.timing import timing
from anew.doctor.training import training_step
from tests.deviants import Forgetful, InTextOrder, OneOff, Packed

#: Without the measurements, and without those that take long and are asked in tests of their own.
QUESTIONS = tuple(probe for probe in PROBES if probe not in (timing, training_step, budget))
M4 = load_chip("m4")


@pytest.fixture(params=["e5rt", "ane", "ane in memory"])
def open_route(request):
    """Open a route on a new fake, with switches of the fake and an engine behind it."""
    make, opener, switches = {
        "e5rt": ("make_fake", "open_engine", {}),
        "ane": ("make_classes", "open_ane", {}),
        "ane in memory": ("make_classes", "open_ane", {"client_refuses": 1}),
    }[request.param]

    def open_it(behind=None, **more):
        fake = request.getfixturevalue(make)(numerics="exact", **switches, **more)
        fake.engine = behind or fake.engine
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*go through _ANEInMemoryModel", FrameworkWarning)
            return request.getfixturevalue(opener)(fake)

    return open_it


def deviations(device, probes=QUESTIONS):
    return {finding.probe for finding in examine(device, {}, probes).deviations}


def test_nothing_seeded_nothing_found(open_route, fresh):
    report = examine(open_route(), {}, tuple(probe for probe in PROBES if probe is not timing))
    assert report.deviations == []
    assert len(report.findings) > 75


SEEDED = {
    "ports in the order of the text": (InTextOrder(M4), {"ports/order"}),
    "a function's figure": (OneOff("exp", 1.01), {"operations/exp"}),
    "one bit of an exact operation": (OneOff("maximum", 1 + 2**-10), {"operations/maximum"}),
    "a transpose": (OneOff("transpose", -1.0), {"operations/transpose"}),
    "weights of the first compile": (Forgetful(M4), {"programs/other weights under one text"}),
}


@pytest.mark.parametrize("name", SEEDED)
def test_exactly_what_is_seeded_is_found(open_route, name):
    behind, wanted = SEEDED[name]
    assert deviations(open_route(behind)) == wanted


def test_packed_rows_are_found_wherever_rows_are_short(open_route):
    found = deviations(open_route(Packed(M4)))
    assert found == deviations(Packed(M4))
    assert {"ports/rows of 1", "ports/rows of 17", "ports/rows of 48"} < found
    assert "ports/rows of 32" not in found


def test_a_smaller_budget(open_route):
    device = open_route(loaded_programs=40)
    (found,) = examine(device, {}, (budget,)).deviations
    assert (found.probe, found.found) == ("programs/budget", "40 load")


def test_an_engine_that_errs_in_the_programs_of_training(open_route, fresh):
    class Drifting(OneOff):
        """Errs in programs of many ports, as those of training are."""

        def after(self, program, bindings):
            if len(program.inputs) > 5:
                bindings[program.outputs[0].name].mul_(self.factor)

    assert deviations(open_route(Drifting("", 1.2)), (*QUESTIONS, training_step)) == {"training/steps"}
