"""What every device offers: compile MIL text, make operations of a program, bind buffers by port name, execute.

The interface is the smallest common ground of the two routes to the real engine (Espresso's e5rt functions and the
``_ANE*`` classes) and of the emulated one: a program is compiled from text and a weight blob, serves any number of
operation instances, and reads and writes buffers whose rows are strided to the chip's row size.
"""

from __future__ import annotations

import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor

from anew.chips import Chip
from anew.device.buffers import BufferPool, Layout
from anew.device.copies import Copies
from anew.errors import AnewError
from anew.mil import TensorType, Weights, parse_program

INFINITE_PRODUCT = -52416.0
"""What the engine gives for infinity times a number, so that an overflow may hide behind a finite value.

Source: ANEForge 0.4.0, FAQ (M1 Max, M5 Pro).
"""


class DeviceError(AnewError):
    """A device refused or failed; ``stage`` is ``compile``, ``load``, ``bind`` or ``execute``."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(f"{stage}: {message}")
        self.stage = stage
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.stage, self.message)  # as it was made: errors come out of worker processes


@dataclass(frozen=True)
class Port:
    """A named input or output of a program."""

    name: str
    type: TensorType

    @cached_property
    def dtype(self) -> torch.dtype:
        """Element type of the buffers it takes."""
        return _BUFFER_TYPES[self.type.dtype]


_leased_as = attrgetter("leased_as")


def in_order(names: Sequence[str]) -> Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]]:
    """What picks the buffers of ports in this order out of bindings."""
    return itemgetter(*names) if len(names) > 1 else lambda bindings: tuple(bindings[name] for name in names)


_BUFFER_TYPES = {"fp16": torch.float16, "fp32": torch.float32}


class Operation(ABC):
    """One instance of a program, with its own bindings. Buffers stay bound until rebound."""

    def __init__(self, program: LoadedProgram) -> None:
        self.program = program
        self.bindings: dict[str, Tensor] = {}

    def bind(self, buffers: Mapping[str, Tensor]) -> None:
        """Bind leased buffers to ports by name; raises DeviceError, binding none, when one does not fit."""
        layouts = self.program.layouts
        try:  # leases of the ports' own shapes, as at nearly every run
            fits = list(map(layouts.get, buffers)) == list(map(_leased_as, buffers.values()))
        except AttributeError:
            fits = False
        if not fits:
            for name, buffer in buffers.items():
                self._check(name, buffer)
        self.bindings.update(buffers)

    def _check(self, name: str, buffer: Tensor) -> None:
        """Raise DeviceError when a buffer does not fit a port."""
        port, pool = self.program.ports.get(name), self.program.device.buffers
        if port is None:
            raise DeviceError("bind", f"the program has no port '{name}'; it has {', '.join(self.program.ports)}")
        if buffer.shape != port.type.shape:
            raise DeviceError("bind", f"port '{name}' is {port.type}, the buffer has {list(buffer.shape)}")
        if buffer.dtype != port.dtype:
            raise DeviceError("bind", f"port '{name}' is {port.type}, the buffer is {buffer.dtype}")
        if not pool.holds(buffer):
            raise DeviceError(
                "bind",
                f"port '{name}' is {port.type}: its rows start at multiples of {pool.row_bytes} bytes, "
                f"{pool.nbytes(port.type.shape, port.dtype)} bytes in all, and the buffer is laid out otherwise; "
                "lease it from the device",
            )

    def execute(self) -> None:
        """Run once, synchronously; raises DeviceError when a port is unbound or the device fails."""
        if len(self.bindings) < len(self.program.ports):
            missing = self.program.ports.keys() - self.bindings.keys()
            raise DeviceError("execute", f"port '{min(missing)}' is not bound")
        statistics = self.program.device.statistics
        statistics.dispatches += 1
        started = time.perf_counter()
        self._execute()
        statistics.seconds += time.perf_counter() - started

    def release_bindings(self) -> None:
        """Forget the bound buffers, so that they return to the pool once nobody holds them."""
        self.bindings.clear()

    @abstractmethod
    def _execute(self) -> None: ...


class LoadedProgram(ABC):
    """A compiled program. Its ports are known by name; ``release`` frees its place in the device's budget."""

    def __init__(self, device: Device, inputs: list[Port], outputs: list[Port]) -> None:
        self.device = device
        self.inputs = inputs
        self.outputs = outputs
        self.ports = {port.name: port for port in (*inputs, *outputs)}

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """How the buffers of each port lie in memory."""
        return {name: self.device.buffers.layout(port.type.shape, port.dtype) for name, port in self.ports.items()}

    @abstractmethod
    def operation(self) -> Operation:
        """Make an operation instance with its own bindings."""

    def release(self) -> None:
        """Unload the program."""
        self.device.statistics.programs -= 1


@dataclass
class DeviceStatistics:
    """Counts since the device was made: programs loaded now; compiles, dispatches and the seconds these took so far."""

    programs: int = 0
    compiles: int = 0
    dispatches: int = 0
    seconds: float = 0.0


@dataclass
class Device(ABC):
    """An engine that runs MIL: the emulated one, the null one, or a real one."""

    chip: Chip
    statistics: DeviceStatistics = field(default_factory=DeviceStatistics)

    #: As given to ``device=``.
    name = ""
    #: True when no silicon computes.
    emulated = True
    #: Which routes to the engine were passed over for it, with the reasons; empty when it was asked for by name.
    why = ""
    #: Whether several functions of a text can be loaded as one program.
    takes_procedures = False

    def __post_init__(self) -> None:
        padded = self.chip.switches["row_pitch"].value == "padded"
        self.buffers = BufferPool(self.chip.row_bytes if padded else 1)

    @cached_property
    def copies(self) -> Copies:
        """What was just read from its buffers, and may be taken from there again."""
        return Copies()

    def compile(self, text: str, weights: Weights, function: str | None = None) -> LoadedProgram:
        """Compile one function of MIL text, with its weights: one file, or several by the path the text gives each.

        ``function`` defaults to ``main`` or the only one there is. Raises DeviceError when a budget of the chip is
        spent or the program breaks one of its rules, MilError when the text is not well formed or has no such function.
        """
        files = weights.values() if isinstance(weights, Mapping) else [weights]
        self._check_budgets(sum(map(len, files)))
        self.statistics.compiles += 1
        program = self._compile(text, weights, function)
        self.statistics.programs += 1
        return program

    def compile_procedures(self, text: str, weights: Weights) -> dict[str, LoadedProgram]:
        """Compile every function of MIL text as a procedure of one program, which counts once: functions by name.

        To release one of them is to release all. A device that does not take procedures takes a text of one function.
        Raises as :meth:`compile` does.
        """
        files = weights.values() if isinstance(weights, Mapping) else [weights]
        self._check_budgets(sum(map(len, files)))
        self.statistics.compiles += 1
        programs = self._compile_procedures(text, weights)
        self.statistics.programs += 1
        return programs

    def _compile_procedures(self, text: str, weights: Weights) -> dict[str, LoadedProgram]:
        (name,) = parse_program(text, weights).functions
        return {name: self._compile(text, weights, name)}

    def check_procedures(self, functions: Collection[str]) -> None:
        """Raise DeviceError when one program cannot have so many functions."""
        if len(functions) > self.chip.procedures:
            raise DeviceError(
                "compile",
                f"a program of {len(functions)} functions; {self.chip.name} takes {self.chip.procedures} procedures",
            )

    def _check_budgets(self, weight_bytes: int) -> None:
        chip, spent = self.chip, self.statistics
        if spent.programs >= chip.loaded_programs:
            gc.collect()  # models that died may lie in cycles
            gc.collect()  # and so do the compiled graphs that they held
        if spent.programs >= chip.loaded_programs:
            raise DeviceError(
                "load",
                f"{spent.programs} programs are loaded, the most that {chip.name} takes in a process; "
                "use fewer shapes or release a compiled model",
            )
        if chip.switches["compile_budget"].value == "wrapper" and spent.compiles >= chip.compiles:
            raise DeviceError(
                "compile",
                f"{spent.compiles} programs were compiled, the most that a process on {chip.name} can through "
                "_ANEInMemoryModel; use fewer shapes, or continue from a checkpoint in a new process",
            )
        if weight_bytes > chip.weight_bytes:
            raise DeviceError(
                "load",
                f"the weights of one program take {weight_bytes} bytes, {chip.name} maps {chip.weight_bytes}; "
                "divide the program",
            )

    @abstractmethod
    def _compile(self, text: str, weights: Weights, function: str | None) -> LoadedProgram: ...
