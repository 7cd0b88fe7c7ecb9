"""One instance of a program on Espresso: an operation on a stream of its own, with named ports."""

from __future__ import annotations

import ctypes
import operator
import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import compress
from typing import TYPE_CHECKING, Any

from torch import Tensor

from anew.device.base import DeviceError, Operation, Port, in_order
from anew.device.e5rt.buffers import BufferObject
from anew.device.e5rt.functions import Espresso
from anew.device.framework import FrameworkError, FrameworkWarning

if TYPE_CHECKING:
    from anew.device.e5rt.engine import E5rtProgram

RETAIN_INPUT = "execution_stream_operation_retain_input_port"
RETAIN_OUTPUT = "execution_stream_operation_retain_output_port"
BIND = "io_port_bind_buffer_object"
RESET, PREPARE = "execution_stream_reset", "execution_stream_operation_prepare_op_for_encode"
ENCODE, EXECUTE = "execution_stream_encode_operation", "execution_stream_execute_sync"


class Instance:
    """The library's objects of one operation: options, operation, ports and stream; closed in the reverse order."""

    def __init__(self, espresso: Espresso, function: int, inputs: Iterable[Port], outputs: Iterable[Port]) -> None:
        self.espresso = espresso
        self.encoded = False
        self.bound: list[BufferObject] = []
        with ExitStack() as stack:
            self.operation = make_operation(espresso, stack, function)
            kinds = [(RETAIN_INPUT, inputs), (RETAIN_OUTPUT, outputs)]
            self.ports = {
                port.name: espresso.make(stack, retain, self.operation, port.name.encode())
                for retain, ports in kinds
                for port in ports
            }
            self.stream = espresso.make(stack, "execution_stream_create")
            self._stack = stack.pop_all()
        self._call, self._bind = espresso.call, espresso.functions[BIND]

    def bind(self, objects: list[BufferObject]) -> None:
        """Bind the buffers that are other ones than before, given in the order of the ports.

        An encoded operation is taken out of its stream first.
        """
        ports, handles = list(self.ports.values()), [o.handle for o in objects]
        if self.bound:
            other = list(map(operator.is_not, objects, self.bound))
            ports, handles = list(compress(ports, other)), list(compress(handles, other))
        if handles and self.encoded:
            self._call(RESET, self.stream)
            self._call(PREPARE, self.operation)
            self.encoded = False
        for code in map(self._bind, ports, handles):
            if code:
                raise self.espresso.error(BIND, code)
        self.bound = objects

    def execute(self) -> None:
        """Run once over what is bound; an operation is encoded into its stream once, not at every run."""
        if not self.encoded:
            self._call(ENCODE, self.stream, self.operation)
            self.encoded = True
        self._call(EXECUTE, self.stream)

    def close(self) -> None:
        """Release everything; does nothing the second time."""
        self._stack.close()
        self.bound = []


class E5rtOperation(Operation):
    """Runs a program over buffers that are bound by name. After a failure it is made anew for its next run.

    Two ports that are given one buffer share it: state that a program reads and writes stays in place.
    """

    program: E5rtProgram

    def __init__(self, program: E5rtProgram) -> None:
        super().__init__(program)
        self.engine = program.device
        self._in_order = in_order(list(program.ports))
        self._instance: Instance | None = program.make_instance()
        self._copies: dict[str, Tensor] = {}

    def _execute(self) -> None:
        addresses = map(Tensor.data_ptr, self._in_order(self.bindings))
        objects: list[Any] = list(map(self.engine.buffers.objects.get, addresses))
        if None in objects:
            objects = [o or self._copied(name) for o, name in zip(objects, self.program.ports, strict=True)]
        try:
            self._bind(objects).execute()
        except FrameworkError:
            self._drop_instance()
            raise

    def _bind(self, objects: list[BufferObject]) -> Instance:
        instance = self._instance = self._instance or self.program.make_instance()
        if instance.bound == objects:
            return instance
        if instance.encoded:
            try:
                if self.engine.rebinds:
                    instance.bind(objects)
                    return instance
            except FrameworkError as error:
                self.engine.rebinds = False
                warnings.warn(
                    f"{error}; from now on operations are made anew when their buffers change, which is slower",
                    FrameworkWarning,
                    stacklevel=2,
                )
            self._drop_instance()
            instance = self._instance = self.program.make_instance()
        instance.bind(objects)
        return instance

    def _drop_instance(self) -> None:
        if self._instance is not None:
            self.program.drop_instance(self._instance)
            self._instance = None

    def _copied(self, name: str) -> BufferObject:
        """An input in memory that is not the library's, copied into a buffer of the operation's own."""
        if name in self.program.output_names:
            raise DeviceError("bind", f"output port '{name}' is bound to memory of others; lease it from the device")
        pool, buffer = self.engine.buffers, self.bindings[name]
        if name not in self._copies:
            self._copies[name] = pool.lease(tuple(buffer.shape), buffer.dtype)
        return pool.objects[self._copies[name].copy_(buffer).data_ptr()]


def make_operation(espresso: Espresso, stack: ExitStack, function: int) -> int:
    """Make an operation of a function, which loads the program; ``stack`` releases it. Returns its handle."""
    options = espresso.make(stack, "precompiled_compute_op_create_options_create_with_program_function", function)
    espresso.call("precompiled_compute_op_create_options_set_operation_name", options, b"main")
    espresso.call("precompiled_compute_op_create_options_set_allocate_intermediate_buffers", options, 1)
    return espresso.make(stack, "execution_stream_operation_create_precompiled_compute_operation_with_options", options)


def strides(espresso: Espresso, port: int, itemsize: int) -> tuple[int, ...]:
    """The strides of a port in bytes. The last axis is dense, which tells the unit that the library counts in."""
    with ExitStack() as stack:
        descriptor = espresso.make(stack, "io_port_retain_tensor_desc", port)
        rank, found = ctypes.c_uint64(), ctypes.POINTER(ctypes.c_int64)()
        espresso.call("tensor_desc_get_strides", descriptor, ctypes.byref(rank), ctypes.byref(found))
        counted = found[: rank.value]
    if not counted or counted[-1] not in (1, itemsize):
        raise DeviceError(
            "load", f"a port's last axis has a stride of {counted}; elements of {itemsize} bytes expected"
        )
    unit = itemsize if counted[-1] == 1 else 1
    return tuple(unit * stride for stride in counted)
