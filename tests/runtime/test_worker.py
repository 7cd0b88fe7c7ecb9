"""The worker process: same numbers as in this process, and a call that aborts or hangs costs a process, not the run."""

import gc
import os
import pickle
import signal
from functools import partial

import pytest
import torch

import anew
from anew.chips import load_chip
from anew.device.base import DeviceError
from anew.device.framework import FrameworkError
from anew.device.worker import client
from anew.device.worker.client import WorkerDevice, WorkerWarning
from anew.frontend.choice import make_device
from anew.frontend.options import Options
from anew.frontend.session import Session
from anew.mil import Builder, print_program
from tests.runtime import worker_devices
from tests.runtime.test_training import STEPS, emulated_losses, losses
from tests.runtime.worker_devices import process_of, run, wait_until_gone

SHAPE = (2, 3, 40)
CHIP = load_chip("m4")
ONES = {"x": torch.full(SHAPE, 3.0), "y": torch.ones(SHAPE)}


def binary(kind, dtype="fp16"):
    b = Builder()
    y, x = b.input("y", SHAPE, dtype), b.input("x", SHAPE, dtype)
    return print_program(b.program([b.op(kind, "z", x=x, y=y)]))


def difference(dtype="fp16"):
    return binary("sub", dtype)


def twos(program):
    """Whether a program of a difference computes it."""
    return run(program, program.operation(), **ONES)["z"].unique().tolist() == [2.0]


@pytest.fixture(scope="module")
def worker():
    device = make_device(Options(device="emulator", chip="m4", worker=True))
    assert isinstance(device, WorkerDevice)
    return device


def test_programs_run_in_another_process(worker):
    assert (worker.name, worker.emulated) == ("emulator", True)
    assert process_of(worker) != os.getpid()
    before = worker.statistics.programs
    program = worker.compile(*difference())
    operations = [program.operation() for _ in range(2)]
    for operation in (*operations, *operations):
        assert run(program, operation, **ONES)["z"].unique().tolist() == [2.0]
    program.release()
    assert worker.statistics.programs == before
    assert twos(worker.compile(*difference()))  # passes the release on


def test_inputs_in_memory_of_this_process_are_copied(worker):
    program = worker.compile(*difference())
    operation, pool = program.operation(), worker.buffers
    own = torch.empty(pool.nbytes(SHAPE), dtype=torch.uint8).view(torch.float16)
    foreign = own.as_strided(SHAPE, pool.strides(SHAPE)).fill_(5.0)
    out = pool.lease(SHAPE)
    operation.bind({"x": foreign, "y": pool.lease(SHAPE).zero_(), "z": out})
    operation.execute()
    assert out.unique().tolist() == [5.0]
    operation.bind({"z": foreign})
    with pytest.raises(DeviceError, match="bind: output port 'z' is bound to memory of others"):
        operation.execute()


def test_errors_of_the_device_arrive_as_they_are(worker):
    text, weights = difference("fp32")
    with pytest.raises(DeviceError, match=r"compile: .*fp32") as raised:
        worker.compile(text, weights)
    assert raised.value.stage == "compile"
    with pytest.raises(anew.AnewError, match="expected"):
        worker.compile("this is no program", b"")


def test_framework_errors_survive_pickling():
    error = FrameworkError("load", "e5rt_x", "e5rt", 11, "said", "known")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), vars(copy)) == (str(error), vars(error))


def test_a_killed_worker_is_replaced_and_the_call_repeated(worker):
    program, other = worker.compile(*difference()), worker.compile(*difference())
    assert twos(program)
    first = process_of(worker)
    os.kill(first, signal.SIGKILL)
    with pytest.warns(WorkerWarning, match="the worker process ended by SIGKILL in run, attempt 1 of 3"):
        assert twos(program)
    assert process_of(worker) != first
    assert twos(other)  # compiled again when it is needed


def test_an_interrupted_call_leaves_no_answer_behind(worker, monkeypatch):
    programs = {kind: worker.compile(*binary(kind)) for kind in ("sub", "mul")}
    run(programs["mul"], programs["mul"].operation(), **ONES)

    def interrupted(connection, seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(worker._process._connection), "poll", interrupted)
    with pytest.raises(KeyboardInterrupt):
        twos(programs["sub"])
    monkeypatch.undo()
    with pytest.warns(WorkerWarning, match="the worker process ended"):  # by itself or killed, whichever comes first
        found = run(programs["mul"], programs["mul"].operation(), **ONES)
    assert found["z"].unique().tolist() == [3.0]


@pytest.mark.parametrize(
    ("fault", "call", "sentence"),
    [
        ("abort", "e5_compiler_compile", "ended by SIGABRT in compile"),
        ("abort", "execution_stream_execute_sync", "ended by SIGABRT in run"),
        ("hang", "execution_stream_execute_sync", "did not answer for 3 s in run"),
    ],
)
def test_a_framework_that_aborts_or_hangs(make_fake, open_engine, espresso_library, tmp_path, fault, call, sentence):
    clean = make_fake()
    program = open_engine(clean).compile(*difference())
    assert twos(program)
    position = len(clean.calls) - clean.calls[::-1].index(call)
    program.release()
    opener = partial(worker_devices.espresso, espresso_library(), tmp_path / "once", fault, position)
    worker = WorkerDevice(CHIP, opener, {"run": 3.0})
    with pytest.warns(WorkerWarning, match=f"the worker process {sentence}, attempt 1 of 3; starting another"):
        assert twos(worker.compile(*difference()))


def test_a_call_that_always_hangs_ends_with_an_error(monkeypatch):
    monkeypatch.setattr(client, "ATTEMPTS", 2)
    worker = WorkerDevice(CHIP, worker_devices.emulator, {"run": 0.0})
    program = worker.compile(*difference())
    with (
        pytest.warns(WorkerWarning, match="attempt 1 of 2; starting another"),
        pytest.raises(DeviceError, match="execute: 2 worker processes were lost, the last did not answer for 0 s"),
    ):
        twos(program)


def test_a_worker_that_cannot_open_its_device():
    with pytest.raises(DeviceError, match="load: the worker process ended with exit code 3 while it opened the device"):
        WorkerDevice(CHIP, partial(os._exit, 3))


@pytest.mark.usefixtures("young")
def test_losses_equal_those_of_this_process_though_the_worker_is_killed(fresh, llama):
    options = Options(device="emulator", chip="m4", strict=True)
    wanted = emulated_losses(llama, options)
    device = WorkerDevice(CHIP, worker_devices.emulator)
    with pytest.warns(WorkerWarning, match="SIGKILL in run"):
        assert losses(llama(), Session(options, device), STEPS, partial(kill_at_step_2, device)) == wanted
    process, folder = process_of(device), device._folder
    torch._dynamo.reset()
    del device
    gc.collect()
    assert wait_until_gone(process)
    assert not folder.exists()


def kill_at_step_2(device, step):
    if step == 2:
        os.kill(process_of(device), signal.SIGKILL)
