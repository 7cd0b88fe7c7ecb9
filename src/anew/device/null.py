"""A device that computes nothing: to measure what the host adds. Its outputs are zeros."""

from __future__ import annotations

from anew.device.base import Device, LoadedProgram, Operation, Port
from anew.mil import Function, Weights, parse_program


class NullDevice(Device):
    """Takes any program, returns zeros."""

    name = "null"
    takes_procedures = True

    def _compile(self, text: str, weights: Weights, function: str | None) -> LoadedProgram:
        return self._program(parse_program(text, weights).function(function))

    def _compile_procedures(self, text: str, weights: Weights) -> dict[str, LoadedProgram]:
        return {name: self._program(entry) for name, entry in parse_program(text, weights).functions.items()}

    def _program(self, entry: Function) -> LoadedProgram:
        return NullProgram(
            self, [Port(v.name, v.type) for v in entry.inputs], [Port(v.name, v.type) for v in entry.outputs]
        )


class NullProgram(LoadedProgram):
    """A program of which only the ports are known."""

    def operation(self) -> Operation:
        """Make an operation that does nothing."""
        return NullOperation(self)


class NullOperation(Operation):
    """Writes zeros to its output ports."""

    def _execute(self) -> None:
        for port in self.program.outputs:
            self.bindings[port.name].zero_()
