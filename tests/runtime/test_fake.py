"""The fake is strict: each misuse of the library is a violation that names the function."""

import ctypes
import gc
from contextlib import ExitStack

import pytest

from anew.chips import load_chip
from anew.device.e5rt.engine import E5rtEngine
from anew.device.e5rt.functions import FUNCTIONS, Espresso
from anew.mil import Builder, print_program
from tests.runtime.espresso import FakeEspresso

pytestmark = pytest.mark.usefixtures("young")

SHAPE = (1, 4, 2, 40)


class Misuse:
    """The library with a program and an operation made by hand, for a test to do one thing wrong."""

    def __init__(self, library):
        self.fake = FakeEspresso(library, load_chip("m4"))
        self.espresso = Espresso(str(library))
        self.engine = E5rtEngine(self.fake.chip, espresso=self.espresso)
        b = Builder()
        self.program = self.engine.compile(*print_program(b.program([b.op("exp", "y", x=b.input("x", SHAPE))])))
        self.instance = self.program.make_instance()
        self.buffers = {name: self.engine.buffers.lease(SHAPE) for name in "xy"}
        known = self.engine.buffers.objects
        self.objects = [known[self.buffers[name].data_ptr()] for name in self.program.ports]

    def code(self, name, *arguments):
        return self.espresso.functions[name](*arguments)

    def release(self, name, handle):
        return self.code(name, ctypes.byref(ctypes.c_void_p(handle)))

    def buffer(self, size):
        out = ctypes.c_void_p()
        assert self.code("buffer_object_alloc", ctypes.byref(out), size, 0) == 0
        return out.value


def bind_all(m):
    m.instance.bind(m.objects)


MISUSES = {
    "io_port_bind_buffer_object: a port is given, a buffer object is wanted": lambda m: m.code(
        "io_port_bind_buffer_object", m.instance.ports["x"], m.instance.ports["x"]
    ),
    "io_port_bind_buffer_object: port 'x' needs 1024 bytes, the buffer has 960": lambda m: m.code(
        "io_port_bind_buffer_object", m.instance.ports["x"], m.buffer(960)
    ),
    "io_port_bind_buffer_object: the operation is encoded: its bindings cannot change": lambda m: (
        bind_all(m),
        m.instance.execute(),
        m.code("io_port_bind_buffer_object", m.instance.ports["x"], m.objects[1].handle),
    ),
    "buffer_object_alloc: 100 bytes are no multiple of 64": lambda m: m.code(
        "buffer_object_alloc", ctypes.byref(ctypes.c_void_p()), 100, 0
    ),
    "buffer_object_alloc: NULL where out_buffer is wanted": lambda m: m.code("buffer_object_alloc", None, 64, 0),
    "buffer_object_release: a buffer object is used after its release": lambda m: (
        handle := m.buffer(64),
        m.release("buffer_object_release", handle),
        m.release("buffer_object_release", handle),
    ),
    "execution_stream_execute_sync: port 'x' is bound to a buffer after its release": lambda m: (
        handle := m.buffer(1024),
        bind_all(m),
        m.code("io_port_bind_buffer_object", m.instance.ports["x"], handle),
        m.release("buffer_object_release", handle),
        m.code("execution_stream_encode_operation", m.instance.stream, m.instance.operation),
        m.code("execution_stream_execute_sync", m.instance.stream),
    ),
    "execution_stream_operation_retain_input_port: the function has no input port 'z'": lambda m: m.code(
        "execution_stream_operation_retain_input_port", m.instance.operation, b"z", ctypes.byref(ctypes.c_void_p())
    ),
    "execution_stream_operation_retain_input_port: the function has no input port 'y'": lambda m: m.code(
        "execution_stream_operation_retain_input_port", m.instance.operation, b"y", ctypes.byref(ctypes.c_void_p())
    ),
    "execution_stream_execute_sync: nothing is encoded in this stream": lambda m: m.code(
        "execution_stream_execute_sync", m.instance.stream
    ),
    "execution_stream_execute_sync: port": lambda m: (
        m.code("execution_stream_encode_operation", m.instance.stream, m.instance.operation),
        m.code("execution_stream_execute_sync", m.instance.stream),
    ),
    "execution_stream_reset: nothing was encoded in this stream": lambda m: m.code(
        "execution_stream_reset", m.instance.stream
    ),
    "execution_stream_operation_prepare_op_for_encode: Op has not been encoded": lambda m: m.code(
        "execution_stream_operation_prepare_op_for_encode", m.instance.operation
    ),
    "execution_stream_encode_operation: the operation is not ready to be encoded": lambda m: [
        m.code("execution_stream_encode_operation", m.instance.stream, m.instance.operation) for _ in range(2)
    ],
    "program_function_release: 1 objects made of this program function are still there": lambda m: m.release(
        "program_function_release", m.program._handle
    ),
    "e5_compiler_create_with_config: the config has no cache location": lambda m: (
        out := ctypes.c_void_p(),
        m.code("e5_compiler_config_options_create", ctypes.byref(out)),
        m.code("e5_compiler_create_with_config", ctypes.byref(ctypes.c_void_p()), out),
    ),
}


@pytest.mark.parametrize("sentence", MISUSES)
def test_a_misuse_is_a_violation(espresso_library, sentence):
    misuse = Misuse(espresso_library())
    assert misuse.fake.violations == []
    MISUSES[sentence](misuse)
    (found,) = misuse.fake.violations
    assert found.startswith(f"e5rt_{sentence}")
    del misuse
    gc.collect()  # before the next test begins anew


def test_compiling_for_another_processor_is_a_violation(espresso_library, monkeypatch):
    monkeypatch.setattr("anew.device.e5rt.engine.ENGINE", 7)
    misuse = FakeEspresso(espresso_library(), load_chip("m4"))
    with pytest.raises(Exception, match="device mask 7 is not the engine's"):
        E5rtEngine(misuse.chip, espresso=Espresso(str(misuse.path)))
    assert len(misuse.violations) == 1


def test_what_is_not_released_is_counted(espresso_library):
    misuse = Misuse(espresso_library())
    with ExitStack() as stack:
        misuse.espresso.make(stack, "execution_stream_create")
        stack.pop_all()
    fake = misuse.fake
    misuse.program.release()
    del misuse
    gc.collect()
    assert fake.alive == {"stream": 1}


def test_every_function_is_used(make_fake, open_engine):
    """A function of the table that a run never calls would be untested."""
    fake = make_fake()
    engine = open_engine(fake)
    b = Builder()
    program = engine.compile(*print_program(b.program([b.op("exp", "y", x=b.input("x", SHAPE))])))
    operation, held = program.operation(), []
    for _ in range(2):
        held.append({name: engine.buffers.lease(SHAPE).zero_() for name in "xy"})
        operation.bind(held[-1])
        operation.execute()
    program.release()
    del program, operation, held, engine
    gc.collect()
    assert set(fake.calls) == FUNCTIONS.keys()
