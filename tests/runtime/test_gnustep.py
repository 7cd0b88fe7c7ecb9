"""The route through the classes on a real Objective-C runtime and a real Foundation: GCC's libobjc and GNUstep's.

The classes of the engine and IOSurface are those of the other tests. Here messages go by class_getMethodImplementation.
"""

import gc
from contextlib import ExitStack

import pytest
import torch

from anew.chips import load_chip
from anew.device import foundation, objc
from anew.device.ane.engine import AneEngine
from anew.device.ane.methods import CLIENT, COMMON, IN_MEMORY
from anew.device.base import DeviceError
from anew.device.emulator.engine import EmulatedEngine
from anew.device.foundation import Foundation
from anew.device.framework import FrameworkError
from anew.device.objc import Runtime
from anew.doctor.examine import examine
from anew.doctor.ports import port_order, row_stride
from anew.doctor.programs import instances, reload
from tests.runtime import neural_engine
from tests.runtime.neural_engine import FakeNeuralEngine
from tests.runtime.test_ane import SHAPE, difference, run, two_procedures, values

LACK = neural_engine.lack_of_gnustep()
pytestmark = [
    pytest.mark.skipif(bool(LACK), reason=LACK),
    pytest.mark.filterwarnings("ignore:.*go through _ANEInMemoryModel"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return neural_engine.build_over_gnustep(tmp_path_factory.mktemp("gnustep"))


@pytest.fixture
def make(request, library):
    made = []

    def make(**switches):
        made.append(FakeNeuralEngine(library, load_chip("m4"), switches=switches))
        return made[-1]

    yield make
    request.node.funcargs.clear()
    gc.collect()
    gc.collect()
    assert made[-1].violations == []
    assert made[-1].alive == {}


def open_route(fake):
    return AneEngine(fake.chip, runtime=Runtime([str(fake.path)]))


def test_the_runtime_is_another_one(make):
    (library,) = Runtime([str(make().path)]).libraries
    assert not hasattr(library, "objc_msgSend")
    assert hasattr(library, "class_getMethodImplementation")


def test_every_method_has_the_encoding_of_the_facts(make):
    methods = objc.MEMORY | foundation.METHODS | COMMON | CLIENT | IN_MEMORY
    assert Runtime([str(make().path)]).methods(methods).keys() == methods.keys()


def test_a_wrong_encoding_stops_with_the_methods_name(make):
    runtime = Runtime([str(make().path)])
    with pytest.raises(DeviceError, match=r"load: -\[NSNumber longLongValue\] is encoded 'q16@0:8' on this system"):
        runtime.method("-[NSNumber longLongValue]", "Q16@0:8")


def test_values_of_a_real_foundation_come_back_as_they_went(make):
    runtime = Runtime([str(make().path)])
    new = Foundation(runtime)
    with new.pool(), ExitStack() as stack:
        text = new.keep(stack, new.string("größer \N{GREEK SMALL LETTER PI}"), "a string", "load")
        inner = new.array([new.number(-5), text, new.number(2**62)])
        found = new.python(new.dictionary({new.string("list"): inner, new.string("none"): new.dictionary({})}))
    assert found == {"list": [-5, "größer \N{GREEK SMALL LETTER PI}", 2**62], "none": {}}


@pytest.mark.parametrize("switches", [{}, {"client_refuses": 1}, {"text_order": 1, "packed": 1, "coherent": 1}])
def test_outputs_equal_the_emulators(make, switches):
    engine = open_route(make(**switches))
    program, emulated = engine.compile(*difference()), EmulatedEngine(load_chip("m4")).compile(*difference())
    operation, reference = program.operation(), emulated.operation()
    for seed in range(3):
        given = {"x": values(seed), "y": values(seed + 10)}
        found, wanted = run(operation, **given), run(reference, **given)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    program.release()


def test_procedures_and_what_is_refused(make):
    engine = open_route(make(loaded_programs=1))
    first, second = engine.compile_procedures(*two_procedures()).values()
    three, two = torch.full(SHAPE, 3.0), torch.full(SHAPE, 2.0)
    assert run(first.operation(), x=three, y=two)["z"].unique().tolist() == [1.0]
    assert run(second.operation(), x=three, y=two)["z"].unique().tolist() == [6.0]
    with pytest.raises(FrameworkError, match=r"load: .*loadModel.* code 6; .*0x50004.*too many programs are loaded"):
        engine.compile(*difference())
    first.release()
    run(engine.compile(*difference()).operation(), x=three, y=two)


def test_the_doctor_asks_it(make):
    report = examine(open_route(make()), {}, (port_order, row_stride, reload, instances))
    assert report.deviations == []
    assert len(report.findings) == 7


def test_500_calls_do_not_grow(make):
    fake = make()
    engine = open_route(fake)
    operation = engine.compile(*difference()).operation()
    run(operation, x=values(0), y=values(1))
    alive = fake.alive
    for seed in range(500):
        run(operation, x=values(seed), y=values(1))
    assert fake.alive == alive
