"""The engine as a device, through the classes of AppleNeuralEngine.framework.

Where published accounts differ, this works under either: the client compiles MIL or only the wrapper does, symbols are
ordered by name or as in the text, rows are packed or padded. What a loaded program says of itself decides.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from anew.device.ane.methods import COMMON
from anew.device.ane.models import ClientWay, InMemoryWay, Model, Way
from anew.device.ane.operation import AneOperation
from anew.device.ane.ports import Procedure, check_layout, check_names, read_procedure, row_stride
from anew.device.ane.surfaces import PAGE, Surface, SurfaceFunctions, SurfacePool, SurfaceSet
from anew.device.base import Device, DeviceError, LoadedProgram, Port
from anew.device.foundation import ARRAY, Foundation
from anew.device.framework import FrameworkWarning
from anew.device.objc import Runtime
from anew.device.staging import weight_files
from anew.mil import Builder, Function, Weights, parse_program, print_program

REQUEST = "+[_ANERequest requestWithInputs:inputIndices:outputs:outputIndices:weightsBuffer:perfStats:procedureIndex:]"


@dataclass
class AneEngine(Device):
    """Apple's engine, driven by messages to its private classes."""

    runtime: Runtime = field(default_factory=Runtime)
    name = "ane"
    takes_procedures = True
    buffers: SurfacePool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.emulated = not self.runtime.genuine
        self.foundation = Foundation(self.runtime)
        self.make_request = self.runtime.method(REQUEST, COMMON[REQUEST])
        functions = SurfaceFunctions(self.runtime, self.foundation)
        try:
            self.way: Way = ClientWay(self.runtime, self.foundation)
            row_bytes = self._row_bytes()
        except DeviceError as error:
            self.way = InMemoryWay(self.runtime, self.foundation)
            row_bytes = self._row_bytes()
            self._budget_compiles()
            warnings.warn(
                f"{error}; programs go through {self.way.name}, which compiles {self.chip.compiles} in a process",
                FrameworkWarning,
                stacklevel=3,  # past the generated __init__
            )
        self.buffers = SurfacePool(functions, row_bytes)

    def _budget_compiles(self) -> None:
        """The wrapper leaks, so that compiles are counted; the one that showed the row stride is the first."""
        budget = replace(self.chip.switches["compile_budget"], value="wrapper")
        self.chip = replace(self.chip, switches={**self.chip.switches, "compile_budget": budget})
        self.statistics.compiles += 1

    def _row_bytes(self) -> int:
        """Bytes that rows are strided to, from a port whose rows are shorter than that."""
        b = Builder()
        x = b.input("x", (1, 2, 2, 16))
        text, weights = print_program(b.program([b.op("add", "y", x=x, y=x)]))
        with ExitStack() as stack, self.foundation.pool():
            model = self.way.load(stack, text, weight_files(text, weights))
            layout = read_procedure(model.attributes(), "main").layouts.get("x", {})
        row = row_stride(layout)
        if row == 32:
            return 1  # packed
        if row >= self.chip.row_bytes and row % self.chip.row_bytes == 0:
            return row
        raise DeviceError("load", f"rows of 32 bytes are {row} bytes apart; packed rows or {self.chip.row_bytes} known")

    def _compile(self, text: str, weights: Weights, function: str | None) -> LoadedProgram:
        entry = parse_program(text, weights).function(function)
        return self._load(text, weights, [entry])[entry.name]

    def _compile_procedures(self, text: str, weights: Weights) -> dict[str, LoadedProgram]:
        functions = parse_program(text, weights).functions
        self.check_procedures(functions)
        return self._load(text, weights, functions.values())

    def _load(self, text: str, weights: Weights, entries: Iterable[Function]) -> dict[str, LoadedProgram]:
        """Load a program once; returns those of its functions that are wanted."""
        with ExitStack() as stack, self.foundation.pool():
            model = self.way.load(stack, text, weight_files(text, weights))
            attributes = model.attributes()
            loaded = Loaded(model, stack.pop_all())
            try:
                return {e.name: AneProgram(self, e, loaded, read_procedure(attributes, e.name)) for e in entries}
            except DeviceError:
                loaded.close()
                raise


class Loaded:
    """A loaded model, of which several programs may be procedures; unloaded when released, or when none is left."""

    def __init__(self, model: Model, handles: ExitStack) -> None:
        self.model, self.handles, self.released = model, handles, False
        weakref.finalize(self, handles.close).atexit = False

    def close(self) -> None:
        """Unload the model and delete its folder."""
        self.released = True
        self.handles.close()


class AneProgram(LoadedProgram):
    """One procedure of a loaded model, whose ports lie as the device's buffers do; DeviceError when they do not."""

    device: AneEngine

    def __init__(self, engine: AneEngine, entry: Function, loaded: Loaded, procedure: Procedure) -> None:
        super().__init__(
            engine, [Port(v.name, v.type) for v in entry.inputs], [Port(v.name, v.type) for v in entry.outputs]
        )
        check_names("input", procedure.inputs, self.inputs)
        check_names("output", procedure.outputs, self.outputs)
        for port in self.ports.values():
            self._check_layout(port, procedure)
        self.loaded, self.procedure = loaded, procedure
        #: Names of the ports in the order of a request's surfaces: inputs, then outputs.
        self.request_order = (*procedure.inputs.names, *procedure.outputs.names)
        foundation, handles = engine.foundation, loaded.handles
        self._input_indices, self._output_indices = (
            foundation.keep(handles, foundation.array([foundation.number(i) for i in side.indices]), ARRAY, "load")
            for side in (procedure.inputs, procedure.outputs)
        )
        self._index = foundation.keep(
            handles, foundation.number(procedure.index), "+[NSNumber numberWithLongLong:]", "load"
        )

    def _check_layout(self, port: Port, procedure: Procedure) -> None:
        pool, shape = self.device.buffers, port.type.shape
        strides = tuple(port.dtype.itemsize * stride for stride in pool.strides(shape, port.dtype))
        nbytes = pool.nbytes(shape, port.dtype)
        check_layout(port, procedure.layouts.get(port.name, {}), strides, nbytes, -(-nbytes // PAGE) * PAGE)

    def operation(self) -> AneOperation:
        """Make an operation instance; instances share the loaded model and own their bindings."""
        return AneOperation(self)

    def request(self, surfaces: Sequence[Surface]) -> Request:
        """Make a request over surfaces in the order of :attr:`request_order`; DeviceError after ``release``."""
        if self.loaded.released:
            raise DeviceError("execute", "the program has been released; compile it again")
        foundation, count = self.device.foundation, len(self.inputs)
        with ExitStack() as stack, foundation.pool():
            made = self.device.make_request(
                foundation.array([surface.object for surface in surfaces[:count]]),
                self._input_indices,
                foundation.array([surface.object for surface in surfaces[count:]]),
                self._output_indices,
                None,
                None,
                self._index,
            )
            if not made:
                raise foundation.error("bind", REQUEST, None)
            handle = foundation.keep(stack, made, REQUEST, "bind")
            return Request(self.loaded.model, handle, SurfaceSet(self.device.buffers.functions, surfaces), stack)

    def release(self) -> None:
        """Unload the program, with all procedures of its model, and delete its folder."""
        self.loaded.close()
        super().release()


class Request:
    """A request of the framework over a set of surfaces; released when no operation keeps it."""

    def __init__(self, model: Model, handle: int, surfaces: SurfaceSet, stack: ExitStack) -> None:
        self._evaluate, self._handle, self._surfaces = model.evaluate, handle, surfaces
        self._pool = model.foundation.pool()
        weakref.finalize(self, stack.pop_all().close).atexit = False

    def run(self) -> None:
        """Run to its end; raises FrameworkError."""
        try:
            self._surfaces.unlock()
            with self._pool:
                self._evaluate(self._handle)
        finally:
            self._surfaces.lock()
