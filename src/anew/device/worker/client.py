"""The device in the run's own process: passes programs and places of buffers on to a worker, and replaces it when lost.

A worker that aborts, hangs or is killed is started again, the programs are compiled again when they are next run, and
the call is repeated: its inputs lie in shared memory, and its outputs are written only by a run that succeeded.
"""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from anew.chips import Chip
from anew.device.base import Device, DeviceError, DeviceStatistics, LoadedProgram, Operation
from anew.device.staging import staging_folder
from anew.device.worker.memory import MEMORY_FOLDER, Place, SharedPool
from anew.device.worker.process import LIMITS, Process, WorkerLost
from anew.mil import Weights

#: Workers that one call may cost.
ATTEMPTS = 3


class WorkerWarning(UserWarning):
    """A worker process was lost and replaced."""


class WorkerDevice(Device):
    """A device that ``opener`` opens in a process of its own.

    ``opener`` is pickled: a function of a module, or a ``functools.partial`` of one. ``limits`` are the seconds that
    an answer may take, by request. Raises what opening raises, and DeviceError when the process does not come up.
    """

    def __init__(self, chip: Chip, opener: Callable[[], Device], limits: dict[str, float] | None = None) -> None:
        self.chip, self.statistics = chip, DeviceStatistics()
        self.opener, self.limits = opener, LIMITS | (limits or {})
        self._numbers = itertools.count()
        self._loaded: set[int] = set()
        self._released: deque[int] = deque()
        with ExitStack() as stack:
            memory = MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None
            self._folder = stack.enter_context(staging_folder(memory))
            self._start()
            weakref.finalize(self, stack.pop_all().close)

    def _start(self) -> None:
        self._process = Process(self.limits)
        try:
            self.name, self.emulated, row_bytes = self._process.ask("open", self._folder, self.opener)
        except WorkerLost as lost:
            raise DeviceError("load", f"the worker process {lost} while it opened the device") from lost
        if not hasattr(self, "buffers"):
            self.buffers: SharedPool = SharedPool(row_bytes, self._folder)

    def _compile(self, text: str, weights: Weights, function: str | None) -> LoadedProgram:
        number, source = next(self._numbers), (text, weights, function)
        inputs, outputs = self.ask("compile", number, *source)
        self._loaded.add(number)
        return WorkerProgram(self, number, source, inputs, outputs)

    def ask(self, name: str, number: int, *arguments: Any, again: Callable[[], None] | None = None) -> Any:
        """Let the worker do something with a program; with another worker when it is lost.

        ``again`` brings a new worker to where the old one was. Raises DeviceError after a few workers.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._pass_on_releases()
                if again is not None and number not in self._loaded:
                    again()
                return self._process.ask(name, number, *arguments)
            except WorkerLost as lost:
                if attempt == ATTEMPTS:
                    stage = "compile" if name == "compile" else "execute"
                    raise DeviceError(stage, f"{ATTEMPTS} worker processes were lost, the last {lost}") from lost
                self._replace(f"{lost} in {name}, attempt {attempt} of {ATTEMPTS}")

    def _replace(self, how: str) -> None:
        warnings.warn(f"the worker process {how}; starting another", WorkerWarning, stacklevel=2)
        self._loaded.clear()
        self._start()

    def _pass_on_releases(self) -> None:
        numbers = [self._released.popleft() for _ in range(len(self._released))]
        numbers = [number for number in numbers if number in self._loaded]
        self._loaded.difference_update(numbers)
        if numbers:
            self._process.ask("release", numbers)

    def load(self, number: int, source: tuple[str, Weights, str | None]) -> None:
        """Compile a program that another worker had."""
        self._process.ask("compile", number, *source)
        self._loaded.add(number)

    def forget(self, number: int) -> None:
        """Have a program released with the next request: a finalizer may call this in the midst of one."""
        self._released.append(number)


class WorkerProgram(LoadedProgram):
    """A program that the worker has, and what it was compiled from."""

    device: WorkerDevice

    def __init__(
        self, device: WorkerDevice, number: int, source: tuple[str, Weights, str | None], inputs: Any, outputs: Any
    ) -> None:
        super().__init__(device, inputs, outputs)
        self.number = number
        self.source = source

    def operation(self) -> Operation:
        """Make an operation instance: the worker has one for all, over buffers that it copies to and from."""
        return WorkerOperation(self)

    def release(self) -> None:
        """Unload the program in the worker, with the next request."""
        self.device.forget(self.number)
        super().release()


class WorkerOperation(Operation):
    """Runs a program in the worker over buffers in shared memory."""

    program: WorkerProgram

    def __init__(self, program: WorkerProgram) -> None:
        super().__init__(program)
        self._copies: dict[str, Tensor] = {}

    def _execute(self) -> None:
        program, device = self.program, self.program.device
        places = {name: self._place(name, buffer) for name, buffer in self.bindings.items()}
        device.ask("run", program.number, places, again=lambda: device.load(program.number, program.source))

    def _place(self, name: str, buffer: Tensor) -> Place:
        """Where a buffer lies; an input in memory of this process alone is copied into shared memory."""
        pool = self.program.device.buffers
        place = pool.places.get(buffer.data_ptr())
        if place is not None:
            return place
        if any(port.name == name for port in self.program.outputs):
            raise DeviceError("bind", f"output port '{name}' is bound to memory of others; lease it from the device")
        if name not in self._copies:
            self._copies[name] = pool.lease(tuple(buffer.shape), buffer.dtype)
        return pool.places[self._copies[name].copy_(buffer).data_ptr()]
