"""A device whose results are checked as it goes: every so many runs, one is done again on the emulated engine."""

from __future__ import annotations

from torch import Tensor

from anew.device.base import Device, DeviceError, LoadedProgram, Operation
from anew.device.emulator.engine import EmulatedEngine
from anew.mil import Weights

#: Largest relative error (norm of the difference) of an output, as of a gradient in anew.doctor.training.
LIMIT_ERROR = 0.05


class RecheckedDevice(Device):
    """Runs programs on another device, and run number ``every``, ``2 * every``, ... on the emulated engine as well."""

    def __init__(self, device: Device, every: int) -> None:
        self.inner = device
        self.every = every
        self.chip, self.statistics, self.buffers = device.chip, device.statistics, device.buffers
        self.name, self.emulated, self.why = device.name, device.emulated, device.why
        self.reference = EmulatedEngine(device.chip)

    def _compile(self, text: str, weights: Weights, function: str | None) -> LoadedProgram:
        return RecheckedProgram(self, self.inner._compile(text, weights, function), (text, weights, function))


class RecheckedProgram(LoadedProgram):
    """A program of the inner device, and the text of it."""

    device: RecheckedDevice

    def __init__(self, device: RecheckedDevice, inner: LoadedProgram, source: tuple[str, Weights, str | None]) -> None:
        super().__init__(device, inner.inputs, inner.outputs)
        self.inner = inner
        self.source = source
        self._reference: Operation | None = None

    def operation(self) -> Operation:
        """Make an operation of the inner program whose results are checked now and then."""
        return RecheckedOperation(self, self.inner.operation())

    def release(self) -> None:
        """Unload the inner program."""
        self.inner.release()

    def reference(self) -> Operation:
        """The program on the emulated engine, loaded at the first check."""
        if self._reference is None:
            self._reference = self.device.reference._compile(*self.source).operation()
        return self._reference


class RecheckedOperation(Operation):
    """An operation of the inner device."""

    program: RecheckedProgram

    def __init__(self, program: RecheckedProgram, inner: Operation) -> None:
        super().__init__(program)
        self.inner = inner
        self.inner.bindings = self.bindings

    def _execute(self) -> None:
        device = self.program.device
        if device.statistics.dispatches % device.every:
            self.inner._execute()
            return
        wanted = self._run_on_emulator()  # first: the program may overwrite its inputs
        self.inner._execute()
        for name, expected in wanted.items():
            self._compare(name, self.bindings[name].float().nan_to_num(), expected.float().nan_to_num())

    def _run_on_emulator(self) -> dict[str, Tensor]:
        reference, lease = self.program.reference(), self.program.device.reference.buffers.lease
        buffers = {p.name: lease(p.type.shape, p.dtype) for p in self.program.ports.values()}
        for port in self.program.inputs:
            buffers[port.name].copy_(self.bindings[port.name])
        reference.bind(buffers)
        reference.execute()
        reference.release_bindings()
        return {port.name: buffers[port.name] for port in self.program.outputs}

    def _compare(self, name: str, found: Tensor, expected: Tensor) -> None:
        error = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
        if not error <= LIMIT_ERROR:
            raise DeviceError(
                "execute",
                f"output '{name}' of run {self.program.device.statistics.dispatches} deviates from the emulated engine "
                f"by {error:.1%}, {LIMIT_ERROR:.0%} is allowed: results of this device cannot be relied on; go on from "
                "the last checkpoint with device 'emulator', and please report it",
            )
