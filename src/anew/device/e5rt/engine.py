"""The engine as a device, through Espresso: a program is compiled from its text, an operation runs it on a stream.

Where published accounts differ, this works under either: rows may be packed or padded (read from a loaded program), the
strides that Espresso gives may be in bytes or in elements, and an operation that has been encoded may take other
buffers after a reset or never again (then it is made anew). Procedures would save nothing here: each function that is
retained, or each operation, takes a place among the loaded programs. Sources: ANEForge 0.4.0, ane-guide chapters 6
and 14.
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from anew.device.base import Device, DeviceError, LoadedProgram, Port
from anew.device.e5rt.buffers import E5rtBufferPool
from anew.device.e5rt.functions import Espresso
from anew.device.e5rt.operation import RETAIN_INPUT, E5rtOperation, Instance, make_operation, strides
from anew.device.staging import staging_folder, weight_files, write_program
from anew.mil import Builder, Function, Weights, parse_program, print_program

#: Bit of ``set_compute_device_types_mask`` (1: BNNS, 2: MPSGraph).
ENGINE = 4
MODEL = "model.mil"


@dataclass
class E5rtEngine(Device):
    """Apple's engine, driven by the C functions of Espresso."""

    espresso: Espresso = field(default_factory=Espresso)
    name = "e5rt"
    buffers: E5rtBufferPool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.emulated = not self.espresso.genuine
        #: Whether an operation takes other buffers once it has been encoded; found out at the first refusal.
        self.rebinds = True
        self.buffers = E5rtBufferPool(self.espresso, self._row_bytes())

    def _row_bytes(self) -> int:
        """Bytes that rows are strided to, from the strides of a port whose rows are shorter than that."""
        b = Builder()
        x = b.input("x", (1, 2, 2, 16))
        text, weights = print_program(b.program([b.op("add", "y", x=x, y=x)]))
        with ExitStack() as stack:
            function = self._load(stack, text, weights, parse_program(text, weights).function(None))
            operation = make_operation(self.espresso, stack, function)
            row = strides(self.espresso, self.espresso.make(stack, RETAIN_INPUT, operation, b"x"), itemsize=2)[-2]
        if row == 32:
            return 1  # packed
        if row >= self.chip.row_bytes and row % self.chip.row_bytes == 0:
            return row
        raise DeviceError("load", f"rows of 32 bytes are {row} bytes apart; packed rows or {self.chip.row_bytes} known")

    def _compile(self, text: str, weights: Weights, function: str | None) -> LoadedProgram:
        entry = parse_program(text, weights).function(function)
        with ExitStack() as stack:
            handle = self._load(stack, text, weights, entry)
            return E5rtProgram(self, entry, handle, stack.pop_all())

    def _load(self, stack: ExitStack, text: str, weights: Weights, entry: Function) -> int:
        """Compile a program in a folder of its own and retain one function; ``stack`` takes all down in order."""
        folder = stack.enter_context(staging_folder())
        write_program(folder, MODEL, text, weight_files(text, weights))
        (folder / "bundle").mkdir()
        with ExitStack() as only_to_compile:
            library = self._library(stack, only_to_compile, folder)
        return self.espresso.make(stack, "program_library_retain_program_function", library, entry.name.encode())

    def _library(self, keep: ExitStack, drop: ExitStack, folder: Path) -> int:
        make, call = self.espresso.make, self.espresso.call
        config = make(drop, "e5_compiler_config_options_create")
        call("e5_compiler_config_options_set_cache_bundle_location", config, str(folder / "bundle").encode())
        compiler = make(drop, "e5_compiler_create_with_config", config)
        options = make(drop, "e5_compiler_options_create")
        call("e5_compiler_options_set_compute_device_types_mask", options, ENGINE)
        call("e5_compiler_options_set_force_recompilation", options, 1)
        call("e5_compiler_options_set_segmenter", options, b"graph")
        return make(keep, "e5_compiler_compile", compiler, str(folder / MODEL).encode(), options)


class E5rtProgram(LoadedProgram):
    """A retained function of a compiled library. Its operations go with it."""

    device: E5rtEngine

    def __init__(self, engine: E5rtEngine, entry: Function, handle: int, handles: ExitStack) -> None:
        super().__init__(
            engine, [Port(v.name, v.type) for v in entry.inputs], [Port(v.name, v.type) for v in entry.outputs]
        )
        self.output_names = {port.name for port in self.outputs}
        self._handle = handle
        self._instances: set[Instance] = set()
        self._handles = handles
        self._layout_known = False
        handles.callback(_close_all, self._instances)
        weakref.finalize(self, handles.close).atexit = False

    def operation(self) -> E5rtOperation:
        """Make an operation instance; instances share the compiled function and own their bindings."""
        return E5rtOperation(self)

    def make_instance(self) -> Instance:
        """Make an operation of the library's; raises DeviceError when its ports are not laid out as buffers are."""
        espresso = self.device.espresso
        instance = Instance(espresso, self._handle, self.inputs, self.outputs)
        self._instances.add(instance)
        if not self._layout_known:
            for port in self.ports.values():
                self._check_layout(port, strides(espresso, instance.ports[port.name], port.dtype.itemsize))
            self._layout_known = True
        return instance

    def _check_layout(self, port: Port, found: tuple[int, ...]) -> None:
        shape, size = port.type.shape, port.dtype.itemsize
        expected = tuple(size * stride for stride in self.device.buffers.strides(shape, port.dtype))
        if any(extent > 1 and a != b for extent, a, b in zip(shape, found, expected, strict=True)):
            raise DeviceError(
                "load", f"port '{port.name}' is {port.type} with strides of {found} bytes, buffers have {expected}"
            )

    def drop_instance(self, instance: Instance) -> None:
        """Take an operation of the library's down."""
        self._instances.discard(instance)
        instance.close()

    def release(self) -> None:
        """Release the operations, the function and the library, in this order, and delete the program's folder."""
        self._handles.close()
        super().release()


def _close_all(instances: set[Instance]) -> None:
    while instances:
        instances.pop().close()
