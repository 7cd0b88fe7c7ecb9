"""The e5rt route on the strict fake: programs, ports, buffers, both readings of every disputed fact."""

import dataclasses
import gc
import itertools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from anew.chips import load_chip
from anew.device.base import DeviceError
from anew.device.e5rt.functions import FUNCTIONS, HANDLE, INT, OUT, SIZES, TEXT, U32, U64, U64_OUT, Espresso
from anew.device.emulator.engine import EmulatedEngine
from anew.device.framework import FrameworkError
from anew.device.staging import PREFIX, clean_up_once, staging_folder
from anew.mil import Builder, Program, print_program
from tests.runtime.espresso import SOURCE

SET_CACHE = "e5_compiler_config_options_set_cache_bundle_location"
SHAPE = (1, 4, 3, 5)


def difference():
    """A program whose ports are neither in alphabetical order nor interchangeable, with a weight."""
    b = Builder()
    y, x = b.input("y", SHAPE), b.input("x", SHAPE)
    low = b.op("sub", "low", x=x, y=y)
    bias = np.arange(60, dtype=np.float16).reshape(SHAPE)
    return print_program(b.program([b.op("add", "high", x=low, y=b.array(bias)), low]))


def run(program, **inputs):
    """Run a program over these inputs in a fresh operation; returns its outputs by name."""
    operation = program.operation()
    return run_again(operation, **inputs)


def run_again(operation, **inputs):
    pool = operation.program.device.buffers
    buffers = {name: pool.lease(SHAPE).copy_(value) for name, value in inputs.items()}
    outputs = {port.name: pool.lease(SHAPE).fill_(-1) for port in operation.program.outputs}
    operation.bind(buffers | outputs)
    operation.execute()
    operation.release_bindings()
    return {name: out.clone() for name, out in outputs.items()}


def values(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).half()


READINGS = [
    dict(zip(("packed", "in_elements", "binds_once", "loads_per_operation"), on, strict=True))
    for on in itertools.product((0, 1), repeat=4)
]


@pytest.mark.parametrize("switches", READINGS, ids=lambda s: "-".join(k for k, v in s.items() if v) or "default")
def test_outputs_equal_the_emulators_under_every_reading(make_fake, open_engine, switches):
    fake = make_fake(**switches)
    engine = open_engine(fake)
    program = engine.compile(*difference())
    emulated = EmulatedEngine(load_chip("m4")).compile(*difference())
    operation = program.operation()
    for seed in range(3):
        given = {"x": values(seed), "y": values(seed + 10)}
        if switches["binds_once"] and seed == 1:
            with pytest.warns(UserWarning, match="operations are made anew when their buffers change"):
                _held, found = hold_and_run(operation, **given)
        else:
            _held, found = hold_and_run(operation, **given)
        wanted = run(emulated, **given)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    program.release()


def hold_and_run(operation, **inputs):
    """Run over buffers that nobody used before: the leases of earlier runs are held back."""
    pool = operation.program.device.buffers
    held = [pool.lease(SHAPE) for _ in range(8)]
    return held, run_again(operation, **inputs)


@pytest.fixture
def engine(fake, open_engine):
    return open_engine(fake)


@pytest.fixture
def program(engine):
    return engine.compile(*difference())


def test_an_operation_is_encoded_once_while_its_buffers_stay(fake, program):
    operation, pool = program.operation(), program.device.buffers
    operation.bind({name: pool.lease(SHAPE).fill_(1.0) for name in ("x", "y", "low", "high")})
    for _ in range(3):
        operation.execute()
    assert fake.calls.count("execution_stream_encode_operation") == 1
    assert fake.calls.count("execution_stream_execute_sync") == 3


def test_instances_of_one_program_own_their_bindings(fake, program):
    first, second = program.operation(), program.operation()
    pool = program.device.buffers
    for operation, factor in ((first, 1.0), (second, 2.0)):
        operation.bind({name: pool.lease(SHAPE).fill_(factor) for name in ("x", "y", "low", "high")})
    second.execute()
    first.execute()
    assert first.bindings["high"].flatten()[-1] == second.bindings["high"].flatten()[-1] == 59
    assert fake.calls.count("e5_compiler_compile") == 2  # the program, and the one that shows the row stride


def test_a_function_of_several_is_taken_by_its_name(engine):
    functions = {}
    for name, kind in (("first", "sub"), ("second", "mul")):
        b = Builder()
        y, x = b.input("y", SHAPE), b.input("x", SHAPE)
        functions[name] = b.function([b.op(kind, "z", x=x, y=y)], name)
    text, weights = print_program(Program(functions))
    for name, wanted in (("first", 1.0), ("second", 6.0)):
        program = engine.compile(text, weights, name)
        found = run(program, x=torch.full(SHAPE, 3.0), y=torch.full(SHAPE, 2.0))
        assert found["z"].unique().tolist() == [wanted]


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
    operation.execute()
    assert low.unique().tolist() == [5.0]
    foreign.fill_(8.0)
    operation.execute()
    assert low.unique().tolist() == [6.0]
    operation.bind({"low": foreign})
    with pytest.raises(DeviceError, match="bind: output port 'low' is bound to memory of others; lease it"):
        operation.execute()


def test_tensors_outlive_program_and_device(fake, open_engine):
    engine = open_engine(fake)
    program = engine.compile(*difference())
    out = run(program, x=values(0), y=values(1))["low"]
    kept = engine.buffers.lease(SHAPE).copy_(out)
    program.release()
    del program, engine
    gc.collect()
    assert torch.equal(kept, out)
    assert fake.alive == {"buffer object": 4}  # a lease holds the pool that its memory returns to


def test_weights_are_read_from_the_file_beside_the_text(engine):
    b = Builder()
    x = b.input("x", (1, 64, 1, 32))
    weight = np.random.default_rng(0).standard_normal((64, 64), np.float32).astype(np.float16)
    text, blob = print_program(b.program([b.op("add", "y", x=x, y=b.array(np.tile(weight[None, :, None, :32], 1)))]))
    assert "BLOBFILE" in text
    operation = engine.compile(text, blob).operation()
    out = engine.buffers.lease((1, 64, 1, 32))
    operation.bind({"x": engine.buffers.lease((1, 64, 1, 32)).zero_(), "y": out})
    operation.execute()
    assert np.array_equal(out.numpy()[0, :, 0], weight[:, :32])


def test_a_refused_program_says_what_the_compiler_said(engine):
    b = Builder()
    text, blob = print_program(b.program([b.op("relu", "y", x=b.input("x", SHAPE, "fp32"))]))
    with pytest.raises(FrameworkError, match=r"e5rt_e5_compiler_compile failed with e5rt code 11; .*fp32") as raised:
        engine.compile(text, blob)
    assert (raised.value.stage, raised.value.domain, raised.value.code) == ("compile", "e5rt", 11)
    assert "refused the program" in raised.value.known


@pytest.mark.parametrize("per_operation", [0, 1])
def test_loaded_programs_are_kept_within_the_limit(make_fake, open_engine, per_operation):
    fake = make_fake(loaded_programs=5, loads_per_operation=per_operation)
    engine = open_engine(fake)
    engine.chip = dataclasses.replace(engine.chip, loaded_programs=5)
    programs = [engine.compile(*difference()) for _ in range(5)]
    kept = [run(program, x=values(0), y=values(1)) for program in programs]
    with pytest.raises(DeviceError, match="load: 5 programs are loaded, the most that m4 takes in a process"):
        engine.compile(*difference())
    programs.pop().release()
    assert torch.equal(run(engine.compile(*difference()), x=values(0), y=values(1))["low"], kept[0]["low"])


@pytest.mark.parametrize("define", [(), ("CACHE_OF_FACTS",)])
def test_a_function_is_found_under_each_name_it_is_known_by(make_fake, open_engine, define):
    engine = open_engine(make_fake(*define))
    assert run(engine.compile(*difference()), x=values(1), y=values(1))["low"].unique().tolist() == [0.0]


def test_a_library_without_a_function_names_it():
    with pytest.raises(FrameworkError, match="e5rt_e5_compiler_config_options_create failed with dyld code -1"):
        Espresso("libc.so.6")


def test_a_missing_library_is_named():
    with pytest.raises(FrameworkError, match=r"load: dlopen failed with dyld code -1; .*Espresso\.framework"):
        Espresso()


def test_signatures_are_those_of_the_published_prototypes():
    prototypes = {
        "void **": OUT, "void *": HANDLE, "const char *": TEXT, "uint64_t ": U64, "uint32_t ": U32, "int ": INT,
        "uint64_t *": U64_OUT, "const int64_t **": SIZES,
    }  # fmt: skip
    source = SOURCE.read_text().replace("RELEASE(", "int64_t ").replace("SET_CACHE(", "e5rt_" + SET_CACHE + "(")
    found = {}
    for name, arguments in re.findall(r"int64_t e5rt_(\w+)(?:\(([^)]*)\) ?\{|, [A-Z_]+\))", source):
        words = arguments.split(",") if arguments else ["void **obj"]
        found[name] = tuple(prototypes[re.sub(r"\w+$", "", w.strip())] for w in words)
    assert found == {name: signature.arguments for name, signature in FUNCTIONS.items()}


def test_programs_do_not_grow_over_500_calls(fake, program):
    operation = program.operation()
    run_again(operation, x=values(0), y=values(1))
    alive, allocated = fake.alive, program.device.buffers.allocated_bytes
    for seed in range(500):
        run_again(operation, x=values(seed), y=values(1))
    assert fake.alive == alive
    assert program.device.buffers.allocated_bytes == allocated


def test_the_folder_of_a_program_goes_with_it(fake, engine):
    before = set(staged())
    program = engine.compile(*difference())
    assert len(set(staged()) - before) == 1
    program.release()
    assert set(staged()) == before


def test_folders_of_processes_that_died_are_deleted():
    died = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    left = Path(tempfile.gettempdir(), f"{PREFIX}{int(died.stdout)}-left")
    left.mkdir()
    clean_up_once.cache_clear()
    with staging_folder(left.parent):
        assert not left.exists()


def staged():
    return Path(tempfile.gettempdir()).glob(f"{PREFIX}{os.getpid()}-*")
