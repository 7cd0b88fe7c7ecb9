"""The device interface: binding by name, budgets, operations with their own bindings; the null device."""

import dataclasses

import pytest
import torch

import anew
from anew.chips import load_chip
from anew.device.base import DeviceError
from anew.device.emulator.engine import EmulatedEngine
from anew.device.null import NullDevice
from anew.errors import UserError
from anew.mil import Builder, print_program


def difference():
    """A program whose ports are neither in alphabetical order nor interchangeable."""
    b = Builder()
    y, x = b.input("y", (2, 3)), b.input("x", (2, 3))
    low = b.op("sub", "low", x=x, y=y)
    return print_program(b.program([b.op("mul", "high", x=low, y=10.0), low]))


@pytest.fixture
def engine():
    return EmulatedEngine(load_chip("m4"))


@pytest.fixture
def program(engine):
    return engine.compile(*difference())


def buffers(device, **values):
    leased = {name: device.buffers.lease((2, 3)).fill_(value) for name, value in values.items()}
    return leased | {name: device.buffers.lease((2, 3)) for name in ("low", "high")}


def test_ports_are_bound_by_name_in_any_order(engine, program):
    for order in (sorted, lambda names: sorted(names, reverse=True)):
        operation, bound = program.operation(), buffers(engine, x=5.0, y=2.0)
        for name in order(bound):
            operation.bind({name: bound[name]})
        operation.execute()
        assert bound["low"].unique().tolist() == [3.0]
        assert bound["high"].unique().tolist() == [30.0]


def test_an_unknown_port(engine, program):
    with pytest.raises(DeviceError, match="bind: the program has no port 'z'; it has y, x, high, low") as raised:
        program.operation().bind({"z": engine.buffers.lease((2, 3))})
    assert raised.value.stage == "bind"


def test_a_buffer_of_another_shape(engine, program):
    with pytest.raises(DeviceError, match=r"port 'x' is tensor<fp16, \[2, 3\]>, the buffer has \[3, 2\]"):
        program.operation().bind({"x": engine.buffers.lease((3, 2))})


def test_a_buffer_of_another_type(program):
    with pytest.raises(DeviceError, match=r"port 'x' is tensor<fp16, \[2, 3\]>, the buffer is torch.float32"):
        program.operation().bind({"x": torch.zeros(2, 3)})


def test_an_unbound_port(engine, program):
    operation, bound = program.operation(), buffers(engine, x=1.0, y=1.0)
    del bound["low"]
    operation.bind(bound)
    with pytest.raises(DeviceError, match="execute: port 'low' is not bound") as raised:
        operation.execute()
    assert raised.value.stage == "execute"
    assert engine.statistics.dispatches == 0


def test_released_bindings_must_be_bound_again(engine, program):
    operation = program.operation()
    operation.bind(buffers(engine, x=1.0, y=1.0))
    operation.execute()
    operation.release_bindings()
    with pytest.raises(DeviceError, match="is not bound"):
        operation.execute()


def test_operations_of_one_program_keep_their_own_bindings(engine, program):
    first, second = program.operation(), program.operation()
    one, two = buffers(engine, x=1.0, y=0.0), buffers(engine, x=2.0, y=0.0)
    first.bind(one)
    second.bind(two)
    first.execute()
    second.execute()
    assert (one["low"].unique().item(), two["low"].unique().item()) == (1.0, 2.0)
    one["x"].fill_(7.0)  # bound buffers are read at each run
    first.execute()
    assert (one["low"].unique().item(), two["low"].unique().item()) == (7.0, 2.0)
    assert engine.statistics.dispatches == 3


@pytest.mark.parametrize("device", [EmulatedEngine, NullDevice])
def test_the_load_budget(device):
    engine = device(dataclasses.replace(load_chip("m4"), loaded_programs=2))
    first, _second = engine.compile(*difference()), engine.compile(*difference())
    sentence = "load: 2 programs are loaded, the most that m4 takes in a process; use fewer shapes or release"
    with pytest.raises(DeviceError, match=sentence) as raised:
        engine.compile(*difference())
    assert raised.value.stage == "load"
    first.release()
    engine.compile(*difference())
    assert (engine.statistics.programs, engine.statistics.compiles) == (2, 3)


def test_a_program_refused_takes_no_place(engine):
    with pytest.raises(anew.AnewError):
        engine.compile("program(1.3) nonsense", b"")
    assert engine.statistics.programs == 0


def test_ports_are_fp16(engine):
    b = Builder()
    x = b.input("x", (3,), "fp32")
    text, weights = print_program(b.program([b.op("exp", x=x)]))
    with pytest.raises(DeviceError, match=r"compile: port 'x' \[3\] is fp32; the engine's ports are fp16 \(disputed"):
        engine.compile(text, weights)


def test_unknown_numerics():
    with pytest.raises(UserError, match="unknown numerics 'slow'; known: exact, fast"):
        EmulatedEngine(load_chip("m4"), numerics="slow")


def test_the_budget_reaches_the_user_of_a_model_as_itself(fresh, llama, monkeypatch):
    from anew.frontend import choice

    small = dataclasses.replace(load_chip("m4"), loaded_programs=3)
    monkeypatch.setattr(choice, "load_chip", lambda name, switches: small)
    net = anew.compile(llama(layers=1), device="emulator")
    net(input_ids=torch.arange(8)[None]).logits.sum().backward()
    net(input_ids=torch.arange(9)[None])  # its backward is compiled when it is first needed
    with pytest.raises(DeviceError, match="3 programs are loaded"):
        net(input_ids=torch.arange(10)[None])


def test_the_null_device_runs_a_training_step_of_zeros(fresh, llama):
    net = anew.compile(llama(), device="null", strict=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(2):
        net(input_ids=torch.arange(8)[None]).logits.sum().backward()
        layer = [p.grad for p in net.model.layers.parameters()]
        assert all((g == 0).all() for g in layer)
        optimizer.step()
        optimizer.zero_grad()
    found = anew.statistics(net)
    assert (found.device, found.programs, found.dispatches - found.calibrations) == ("null", 2, 8)
