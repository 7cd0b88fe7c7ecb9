"""The route through the classes on strict fakes: programs, ports, surfaces, both readings of every disputed fact."""

import dataclasses
import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from anew.chips import load_chip
from anew.device.ane import operation as operation_module
from anew.device.ane.engine import REQUEST
from anew.device.ane.operation import KEPT
from anew.device.base import DeviceError
from anew.device.emulator.engine import EmulatedEngine
from anew.device.framework import FrameworkError, FrameworkWarning
from anew.device.routes import ROUTES
from anew.device.staging import PREFIX, clean_up_once, owned_folder
from anew.mil import Builder, Program, print_program

SHAPE = (1, 4, 3, 5)
SWITCHES = ("client_refuses", "text_order", "packed", "plain_names", "channels_first", "coherent")
READINGS = [{}, *({name: 1} for name in SWITCHES), dict.fromkeys(SWITCHES, 1)]


def difference(shape=SHAPE):
    """A program whose ports are neither in alphabetical order nor interchangeable, with a weight."""
    b = Builder()
    y, x = b.input("y", shape), b.input("x", shape)
    low = b.op("sub", "low", x=x, y=y)
    bias = np.arange(np.prod(shape), dtype=np.float16).reshape(shape)
    return print_program(b.program([b.op("add", "high", x=low, y=b.array(bias)), low]))


def run(operation, **inputs):
    """Run over these inputs in fresh buffers; returns the outputs by name."""
    pool, program = operation.program.device.buffers, operation.program
    buffers = {name: pool.lease(tuple(value.shape)).copy_(value) for name, value in inputs.items()}
    outputs = {port.name: pool.lease(port.type.shape).fill_(-1) for port in program.outputs}
    operation.bind(buffers | outputs)
    operation.execute()
    operation.release_bindings()
    return {name: out.clone() for name, out in outputs.items()}


def values(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half()


@pytest.mark.parametrize("switches", READINGS, ids=lambda s: "-".join(s) or "default")
@pytest.mark.filterwarnings("ignore:.*go through _ANEInMemoryModel")
def test_outputs_equal_the_emulators_under_every_reading(make_classes, open_ane, switches):
    engine, emulator = open_ane(make_classes(**switches)), EmulatedEngine(load_chip("m4"))
    for shape in (SHAPE, (6, 5), (2, 3, 5), (1, 2, 3, 2, 5), (5,)):
        program, emulated = engine.compile(*difference(shape)), emulator.compile(*difference(shape))
        given = {"x": values(1, shape), "y": values(2, shape)}
        found, wanted = run(program.operation(), **given), run(emulated.operation(), **given)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), shape
        program.release()


@pytest.fixture
def fake(make_classes):
    return make_classes()


@pytest.fixture
def engine(fake, open_ane):
    return open_ane(fake)


@pytest.fixture
def program(engine):
    return engine.compile(*difference())


def test_the_client_is_taken_first_and_the_wrapper_with_a_warning(make_classes, open_ane):
    assert open_ane(make_classes()).way.name == "_ANEClient"
    with pytest.warns(FrameworkWarning, match=r"compileModel:options:qos:error:\] failed .* code -1; .*InMemoryModel"):
        engine = open_ane(make_classes(client_refuses=1))
    assert engine.way.name == "_ANEInMemoryModel"


def test_the_route_is_one_of_those_that_auto_tries():
    assert list(ROUTES) == ["e5rt", "ane"]
    with pytest.raises(FrameworkError, match=r"load: dlopen failed with dyld code -1; .*libobjc"):
        ROUTES["ane"].open(load_chip("m4"))


def test_operations_of_one_program_keep_their_own_bindings(program):
    first, second = program.operation(), program.operation()
    pool = program.device.buffers
    for operation, factor in ((first, 1.0), (second, 2.0)):
        operation.bind({name: pool.lease(SHAPE).fill_(factor) for name in ("x", "y", "low", "high")})
        operation.bindings["x"].fill_(3 * factor)
    second.execute()
    first.execute()
    assert (first.bindings["low"].unique().item(), second.bindings["low"].unique().item()) == (2.0, 4.0)


def test_state_stays_in_one_buffer_that_two_ports_share(engine):
    b = Builder()
    state, step = b.input("state", SHAPE), b.input("step", SHAPE)
    program = engine.compile(*print_program(b.program([b.op("add", "next", x=state, y=step)])))
    operation, pool = program.operation(), engine.buffers
    shared = pool.lease(SHAPE).zero_()
    operation.bind({"state": shared, "next": shared, "step": pool.lease(SHAPE).fill_(1.5)})
    for _ in range(4):
        operation.execute()
    assert shared.unique().tolist() == [6.0]


def test_an_input_in_other_memory_is_read_at_each_run(engine, program):
    operation, pool = program.operation(), engine.buffers
    strided = torch.empty(pool.nbytes(SHAPE), dtype=torch.uint8).view(torch.float16)
    foreign = strided.as_strided(SHAPE, pool.strides(SHAPE, torch.float16)).fill_(7.0)
    low = pool.lease(SHAPE)
    operation.bind({"x": foreign, "y": pool.lease(SHAPE).fill_(2.0), "low": low, "high": pool.lease(SHAPE)})
    for value in (7.0, 8.0):
        foreign.fill_(value)
        operation.execute()
        assert low.unique().tolist() == [value - 2.0]
    operation.bind({"low": foreign})
    with pytest.raises(DeviceError, match="bind: output port 'low' is bound to memory of others; lease it"):
        operation.execute()


def test_a_program_that_was_released_does_not_run(program):
    operation = program.operation()
    program.release()
    with pytest.raises(DeviceError, match="execute: the program has been released"):
        run(operation, x=values(0), y=values(1))


def test_tensors_outlive_program_and_device(fake, open_ane):
    engine = open_ane(fake)
    program = engine.compile(*difference())
    out = run(program.operation(), x=values(0), y=values(1))["low"]
    kept = engine.buffers.lease(SHAPE).copy_(out)
    program.release()
    del program, engine
    gc.collect()
    assert torch.equal(kept, out)
    assert fake.alive == {"IOSurface": 4, "_ANEIOSurfaceObject": 4}  # a lease holds the pool that its memory returns to


@pytest.mark.parametrize("way", [0, 1])
@pytest.mark.filterwarnings("ignore:.*go through _ANEInMemoryModel")
def test_a_refused_program_says_what_the_compiler_said(make_classes, open_ane, way):
    engine = open_ane(make_classes(client_refuses=way))
    b = Builder()
    text, blob = print_program(b.program([b.op("relu", "y", x=b.input("x", SHAPE, "fp32"))]))
    with pytest.raises(FrameworkError, match=r"compile.* failed with .*compiler code 1; .*fp32.*refused") as raised:
        engine.compile(text, blob)
    found = raised.value
    assert (found.stage, found.domain, found.code) == ("compile", "com.apple.appleneuralengine.compiler", 1)


def test_a_surface_that_is_too_short_is_named(engine):
    program = engine.compile(*difference((1, 4, 128, 64)))
    short, long = engine.buffers.lease((4,)), engine.buffers.lease((1, 4, 128, 64))
    surfaces = [engine.buffers.surfaces[buffer.data_ptr()] for buffer in (short, long)]
    with pytest.raises(FrameworkError, match=r"execute: .*evaluateWithModel.* code 8; .*0x1d.*a surface is smaller"):
        program.request([surfaces[0], surfaces[1], surfaces[1], surfaces[1]]).run()
    assert short.fill_(1.0).sum() == 4  # the processor has its memory back


def test_loaded_programs_are_kept_within_the_limit(make_classes, open_ane):
    engine = open_ane(make_classes(loaded_programs=3))
    programs = [engine.compile(*difference()) for _ in range(3)]
    with pytest.raises(FrameworkError, match=r"load: .*loadModel.* code 6; .*0x50004.*too many programs are loaded"):
        engine.compile(*difference())
    engine.chip = dataclasses.replace(engine.chip, loaded_programs=3)
    with pytest.raises(DeviceError, match="load: 3 programs are loaded, the most that m4 takes in a process"):
        engine.compile(*difference())
    programs.pop().release()
    run(engine.compile(*difference()).operation(), x=values(0), y=values(1))


def test_a_load_that_comes_too_early_is_tried_again(make_classes, open_ane, monkeypatch):
    monkeypatch.setattr("anew.device.ane.models.PATIENCE", 0.0)
    assert open_ane(make_classes(loads_late=1)).buffers.row_bytes == 64


@pytest.mark.filterwarnings("ignore:.*go through _ANEInMemoryModel")
def test_the_120th_compile_through_the_wrapper_is_an_error_of_its_own(make_classes, open_ane):
    engine = open_ane(make_classes(client_refuses=1, compiles=119))
    for _ in range(118):  # the first showed the row stride
        engine.compile(*difference()).release()
    with pytest.raises(DeviceError, match=r"compile: 119 programs were compiled, .* through _ANEInMemoryModel"):
        engine.compile(*difference())
    engine.statistics.compiles = 0
    with pytest.raises(FrameworkError, match=r"ANECCompile\(\) FAILED.*as many programs as it can"):
        engine.compile(*difference())


def two_procedures():
    """Functions with ports of equal names, so that an index of the other's shows."""
    functions = {}
    for name, kind in (("first", "sub"), ("second", "mul")):
        b = Builder()
        y, x = b.input("y", SHAPE), b.input("x", SHAPE)
        functions[name] = b.function([b.op(kind, "z", x=x, y=y)], name)
    return print_program(Program(functions))


@pytest.mark.parametrize("switches", READINGS, ids=lambda s: "-".join(s) or "default")
@pytest.mark.filterwarnings("ignore:.*go through _ANEInMemoryModel")
def test_procedures_of_one_program_take_one_place(make_classes, open_ane, switches):
    fake = make_classes(loaded_programs=1, **switches)
    engine = open_ane(fake)
    compiles = engine.statistics.compiles
    programs = engine.compile_procedures(*two_procedures())
    assert (engine.statistics.programs, engine.statistics.compiles - compiles) == (1, 1)
    assert [p.procedure.inputs.indices for p in programs.values()] == [(0, 1), (2, 3)]
    three, two = torch.full(SHAPE, 3.0), torch.full(SHAPE, 2.0)
    operations = {name: program.operation() for name, program in programs.items()}
    for name, wanted in (("first", 1.0), ("second", 6.0), ("first", 1.0)):
        assert run(operations[name], x=three, y=two)["z"].unique().tolist() == [wanted]
    programs["second"].release()
    assert engine.statistics.programs == 0
    with pytest.raises(DeviceError, match="the program has been released; compile it again"):
        run(operations["first"], x=three, y=two)
    run(engine.compile(*difference()).operation(), x=three, y=two)  # its place is free


def test_indices_of_another_procedure_are_refused(engine):
    first, second = engine.compile_procedures(*two_procedures()).values()
    second._input_indices = first._input_indices
    with pytest.raises(FrameworkError, match=r"execute: .*status=0x2.*a wrong symbol index"):
        run(second.operation(), x=values(0), y=values(1))


def test_more_procedures_than_the_chip_takes_are_refused(engine):
    engine.chip = dataclasses.replace(engine.chip, procedures=1)
    with pytest.raises(DeviceError, match="compile: a program of 2 functions; m4 takes 1 procedures"):
        engine.compile_procedures(*two_procedures())


def test_a_procedure_whose_ports_lie_otherwise_leaves_nothing_loaded(fake, engine, monkeypatch):
    monkeypatch.setattr(engine.buffers, "row_bytes", 128)
    with pytest.raises(DeviceError, match="buffers have 128"):
        engine.compile_procedures(*two_procedures())
    assert engine.statistics.programs == 0
    assert "_ANEModel" not in fake.alive


def test_a_request_is_made_once_for_a_set_of_buffers_and_kept_for_so_many(fake, program, monkeypatch):
    monkeypatch.setattr(operation_module, "KEPT", 3)
    operation, pool = program.operation(), program.device.buffers
    sets = [{n: pool.lease(SHAPE).fill_(i) for n in ("x", "y", "low", "high")} for i in range(4)]
    fake.log_calls()

    def made(*order):
        before = fake.calls.count(REQUEST)
        for i in order:
            sets[i]["x"].fill_(i + 1)
            operation.bind(sets[i])
            operation.execute()
            assert sets[i]["low"].unique().tolist() == [1.0]  # x is larger than y by one
        return fake.calls.count(REQUEST) - before

    assert made(0, 1, 2, 0, 1, 2) == 3
    assert made(3, 3, 1, 2) == 1
    assert fake.alive["_ANERequest"] == 3
    assert made(0) == 1


def test_500_calls_do_not_grow(fake, program):
    operation = program.operation()
    for seed in range(KEPT):  # an operation keeps a request for each set of buffers, up to so many
        run(operation, x=values(seed), y=values(1))
    alive, allocated = fake.alive, program.device.buffers.allocated_bytes
    for seed in range(500):
        run(operation, x=values(seed), y=values(1))
    assert fake.alive == alive
    assert program.device.buffers.allocated_bytes == allocated


@pytest.mark.parametrize("way", [0, 1])
@pytest.mark.filterwarnings("ignore:.*go through _ANEInMemoryModel")
def test_the_folder_of_a_program_goes_with_it(make_classes, open_ane, tmp_path, monkeypatch, way):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    engine = open_ane(make_classes(client_refuses=way))
    assert list(tmp_path.iterdir()) == []
    first, second = engine.compile(*difference()), engine.compile(*difference())
    assert len(list(tmp_path.iterdir())) == (1 if way else 2)  # the wrapper looks where the program's hash says
    first.release()
    run(second.operation(), x=values(0), y=values(1))
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_named_folders_of_processes_that_died_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    died = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    for folder, process in (("dead", int(died.stdout)), ("shared", int(died.stdout)), ("shared", os.getpid())):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f".{PREFIX}{process}-0").touch()
    (tmp_path / "others").mkdir()
    clean_up_once.cache_clear()
    with owned_folder(tmp_path / "mine") as folder:
        assert Path(folder).is_dir()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "others", "shared"]


def test_a_port_laid_out_otherwise_is_refused(engine, monkeypatch):
    monkeypatch.setattr(engine.buffers, "row_bytes", 128)
    with pytest.raises(DeviceError, match=r"load: port '.*' is .*; the engine's RowStride .* is 64 bytes, .* have 128"):
        engine.compile(*difference())
