"""Messages over ctypes: every signature against the facts, values there and back, and that the fakes are strict."""

import re
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anew.device import foundation, objc, power
from anew.device.ane.methods import CLIENT, COMMON, IN_MEMORY, QOS
from anew.device.ane.models import MODEL
from anew.device.ane.surfaces import Surface, SurfaceFunctions
from anew.device.base import DeviceError
from anew.device.foundation import Foundation
from anew.device.framework import FrameworkError, FrameworkWarning
from anew.device.objc import Runtime, parse_encoding
from anew.device.staging import owned_folder, write_program
from anew.mil import Builder, print_program

METHODS = objc.MEMORY | foundation.METHODS | COMMON | CLIENT | IN_MEMORY | power.METHODS
SIZES = {"v": 0, "B": 4, "I": 4, "q": 8, "Q": 8}  # on the stack of the encoding: at least an int


@pytest.mark.parametrize(("name", "encoding"), METHODS.items())
def test_an_encoding_is_whole(name, encoding):
    """Each has an argument for each colon, and offsets that follow from the sizes of its types, as a compiler gives."""
    types = parse_encoding(encoding)
    assert len(types) == 3 + name.count(":")
    assert types[1:3] == ("@", ":")
    total, *offsets = [int(n) for n in re.findall(r"\d+", encoding)]
    sizes = [SIZES.get(t, 8) for t in types[1:]]
    assert offsets == [sum(sizes[:i]) for i in range(len(sizes))]
    assert total == sum(sizes)


def test_bool_and_long_may_be_encoded_otherwise():
    assert parse_encoding("c36@0:8I16@20^@28") == parse_encoding("B36@0:8I16@20^@28") == parse_encoding("C@:I@^@")
    assert parse_encoding("L16@0:8") == parse_encoding("Q16@0:8")
    assert parse_encoding("@24@0:8^{__IOSurface=}16") == parse_encoding("@24@0:8^v16") == ("@", "@", ":", "^v")
    assert parse_encoding("@32@0:8^rv16Q24") == parse_encoding("@32@0:8r^v16Q24") == ("@", "@", ":", "^v", "Q")
    assert parse_encoding("@32@0:8^r@16Q24") == parse_encoding("@32@0:8r^@16Q24") == ("@", "@", ":", "^@", "Q")
    assert parse_encoding("B44@0:8@16@24I32^@36") != parse_encoding("B44@0:8@16@24q32^@36")


@pytest.fixture
def runtime(make_classes):
    return Runtime([str(make_classes().path)])


def test_every_method_is_there_with_its_encoding(runtime):
    assert runtime.methods(METHODS).keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_another_encoding_stops_with_the_methods_name(runtime, name):
    with pytest.raises(DeviceError, match=re.escape(f"load: {name} is encoded")) as raised:
        runtime.method(name, METHODS[name] + "d80")
    assert raised.value.stage == "load"


def test_what_this_system_lacks_is_named(runtime):
    with pytest.raises(DeviceError, match=r"this system has no -\[_ANEClient compile\]; this macOS has moved"):
        runtime.method("-[_ANEClient compile]", "v@:")
    with pytest.raises(DeviceError, match="this system has no class _ANEServer"):
        runtime.method("-[_ANEServer compile]", "v@:")
    with pytest.raises(FrameworkError, match="IOSurfaceFold failed with dyld code -1"):
        runtime.function("IOSurfaceFold", None)


def test_a_private_method_that_changed_makes_the_route_try_the_other_way(make_classes, open_ane):
    fake = make_classes('EVALUATE_ENCODING="B52@0:8@16@24@32Q40^@48"')
    with pytest.warns(FrameworkWarning, match=r"evaluateWithModel:.* is encoded 'B52@0:8@16@24@32Q40\^@48'"):
        assert open_ane(fake).way.name == "_ANEInMemoryModel"


plain = st.recursive(
    st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=12,
)


def test_values_come_back_as_they_went(runtime):
    new = Foundation(runtime)

    def to_object(value):
        match value:
            case int():
                return new.number(value)
            case str():
                return new.string(value)
            case list():
                return new.array([to_object(v) for v in value])
            case _:
                return new.dictionary({new.string(k): to_object(v) for k, v in value.items()})

    @given(plain)
    def check(value):
        with new.pool():
            assert new.python(to_object(value)) == value

    check()


def test_pools_nest_and_what_is_kept_outlives_them(runtime):
    new = Foundation(runtime)
    with ExitStack() as stack:
        with new.pool():
            with new.pool():
                kept = new.keep(stack, new.string("kept"), "a maker", "load")
            outer = new.string("outer")
            assert new.python(outer) == "outer"
        assert new.python(kept) == "kept"


# ---- the fakes: what the route must not do, done here


@pytest.fixture
def strict(neural_engine_library):
    """A fake whose violations are wanted, with Foundation on it."""
    from anew.chips import load_chip
    from tests.runtime.neural_engine import FakeNeuralEngine

    fake = FakeNeuralEngine(neural_engine_library(), load_chip("m4"))
    return fake, Runtime([str(fake.path)])


def test_messages_to_the_dead_and_unknown_ones_are_violations(strict):
    fake, runtime = strict
    methods, new = runtime.methods(objc.MEMORY | foundation.METHODS), Foundation(runtime)
    with new.pool():
        text = new.string("short-lived")
    methods["-[NSString UTF8String]"](text)
    assert fake.violations == ["UTF8String sent to a dead NSString"]
    new.string("leaks")
    assert fake.violations[1:] == ["NSString autoreleased without a pool in place: it leaks"]
    with new.pool():
        methods["-[NSDictionary allKeys]"](new.string("no dictionary"))
    assert fake.violations[2:] == ["-[NSString allKeys]: unrecognized selector"]
    assert fake.alive == {"NSString": 1}


def test_a_descriptor_takes_data_and_a_dictionary(strict):
    fake, runtime = strict
    new, describe = Foundation(runtime), runtime.methods(IN_MEMORY)[next(iter(IN_MEMORY))]
    with new.pool():
        assert describe(new.data(b"program"), None, None) is None
        assert fake.violations == []
        assert describe(new.string("program"), new.dictionary({}), None) is None
    assert fake.violations == ["modelWithMILText:weights:optionsPlist:: argument 1 is NSString, NSData expected"]


def program(weight):
    import numpy as np

    b = Builder()
    x = b.input("x", (1, 64, 1, 32))
    array = np.full((1, 64, 1, 32), weight, np.float16)
    return print_program(b.program([b.op("add", "y", x=x, y=b.array(array))]))


@pytest.fixture
def in_memory(strict, tmp_path, monkeypatch):
    """A model of the wrapper, its folder, its methods and a checker."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    fake, runtime = strict
    new, methods = Foundation(runtime), runtime.methods(IN_MEMORY)
    text, blob = program(1.0)
    with new.pool(), ExitStack() as stack:
        path = "@model_path/weights.bin"
        entry = new.dictionary({new.string("offset"): new.number(0), new.string("data"): new.data(blob)})
        described = methods["+[_ANEInMemoryModelDescriptor modelWithMILText:weights:optionsPlist:]"](
            new.data(text.encode()), new.dictionary({new.string(path): entry}), None
        )
        model = methods["+[_ANEInMemoryModel inMemoryModelWithDescriptor:]"](described)
        identity = new.python(methods["-[_ANEInMemoryModel hexStringIdentifier]"](model))
        folder = stack.enter_context(owned_folder(tmp_path / identity))
        empty = new.dictionary({})

        def call(verb, *arguments):
            name = next(n for n in IN_MEMORY if n.startswith(f"-[_ANEInMemoryModel {verb}"))
            new.check(verb, name, methods[name], model, QOS, *arguments)

        yield call, empty, folder, (text, {path: blob}), fake, runtime


def test_files_are_staged_before_compile_and_programs_compiled_before_load(in_memory):
    call, empty, folder, (text, files), _, _ = in_memory
    with pytest.raises(FrameworkError, match="InvalidMILProgram"):
        call("compile", empty)
    write_program(folder, MODEL, text, {})
    with pytest.raises(FrameworkError, match="InvalidMILProgram"):
        call("compile", empty)
    write_program(folder, MODEL, text, files)
    with pytest.raises(FrameworkError, match="the program is not compiled"):
        call("load", empty)
    call("compile", empty)
    with pytest.raises(FrameworkError, match="the program is not loaded"):
        call("unload")
    call("load", empty)
    call("unload")


def test_weights_overwritten_after_compile_are_not_seen(in_memory):
    """The program keeps what it was compiled with, through unload and load too (maderix/ANE, libane)."""
    call, empty, folder, (text, files), fake, runtime = in_memory
    write_program(folder, MODEL, text, files)
    call("compile", empty)
    write_program(folder, MODEL, text, {"@model_path/weights.bin": program(2.0)[1]})
    call("load", empty)
    found = evaluated(call, empty, runtime)
    assert found == [1.0]
    call("unload")
    assert fake.violations == []


def evaluated(call, options, runtime, locked=False):
    """Run a loaded program of one input ``x`` and one output over zeros; returns the output's values."""
    new = Foundation(runtime)
    functions = SurfaceFunctions(runtime, new)
    surfaces = [Surface(functions, 4096) for _ in range(2)]
    if not locked:
        for surface in surfaces:
            surface.unlock()
    indices = new.array([new.number(0)])
    request = runtime.methods(COMMON)[next(iter(COMMON))](
        new.array([surfaces[0].object]), indices, new.array([surfaces[1].object]), indices, None, None, new.number(0)
    )
    call("evaluate", options, request)
    for surface in surfaces:
        surface.lock()
    return sorted(set(surfaces[1].memory(4096).view("float16").tolist()))


def test_the_engine_does_not_run_over_surfaces_that_the_processor_holds(in_memory):
    call, empty, folder, (text, files), fake, runtime = in_memory
    write_program(folder, MODEL, text, files)
    call("compile", empty)
    with pytest.raises(FrameworkError, match="the program is not loaded"):
        evaluated(call, empty, runtime)
    call("load", empty)
    evaluated(call, empty, runtime, locked=True)
    assert [v.split(": ")[1] for v in fake.violations] == [
        "surface 0 is locked for the processor",
        "surface 0 is locked for the processor",
    ]
    call("unload")


def test_an_unlocked_surface_has_no_address(strict):
    fake, runtime = strict
    new = Foundation(runtime)
    functions = SurfaceFunctions(runtime, new)
    with new.pool():
        handle = functions.create(functions.properties(64))
        functions.base_address(handle)
    functions.release(handle)
    assert fake.violations == ["IOSurfaceGetBaseAddress: the surface is not locked"]
