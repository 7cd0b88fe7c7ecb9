"""The emulated engine as a device: parses the very text and blob the engine would get, and runs them."""

from __future__ import annotations

from dataclasses import dataclass

from anew.chips.check import check, check_text, refused
from anew.chips.violation import Violation
from anew.device.base import Device, DeviceError, LoadedProgram, Operation, Port
from anew.device.emulator.executor import Executable
from anew.device.emulator.kernels import Arithmetic
from anew.errors import UserError
from anew.mil import Function, Program, Weights, parse_program

NUMERICS = ("exact", "fast")


@dataclass
class EmulatedEngine(Device):
    """Computes as the silicon does, on the host's processor.

    ``numerics`` is ``exact`` (the multiply-accumulate rule bit for bit) or ``fast`` (every range rule and fp16
    rounding, without the 2^-16 grid of products).
    """

    numerics: str = "fast"
    name = "emulator"
    takes_procedures = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.numerics not in NUMERICS:
            raise UserError(f"unknown numerics '{self.numerics}'; known: {', '.join(NUMERICS)}")

    def _compile(self, text: str, weights: Weights, function: str | None) -> LoadedProgram:
        return EmulatedProgram(self, self._parse(text, weights).function(function))

    def _compile_procedures(self, text: str, weights: Weights) -> dict[str, LoadedProgram]:
        functions = self._parse(text, weights).functions
        self.check_procedures(functions)
        return {name: EmulatedProgram(self, function) for name, function in functions.items()}

    def _parse(self, text: str, weights: Weights) -> Program:
        self._check(check_text(text, self.chip))
        program = parse_program(text, weights)
        self._check(check(program, self.chip))
        return program

    def _check(self, violations: list[Violation]) -> None:
        for violation in refused(violations):
            raise DeviceError("compile", str(violation))


class EmulatedProgram(LoadedProgram):
    """A function of a parsed program, made into a list of steps once."""

    def __init__(self, engine: EmulatedEngine, entry: Function) -> None:
        super().__init__(
            engine, [Port(v.name, v.type) for v in entry.inputs], [Port(v.name, v.type) for v in entry.outputs]
        )
        self.entry = entry
        arithmetic = Arithmetic(
            exact=engine.numerics == "exact",
            winograd=engine.chip.convolution == "winograd-f23-width",
            slice_limit=engine.chip.slice_limit,
        )
        self.executable = Executable(entry, arithmetic)

    def operation(self) -> Operation:
        """Make an operation instance; instances share the steps and own their bindings."""
        return EmulatedOperation(self)


class EmulatedOperation(Operation):
    """One instance of an emulated program."""

    program: EmulatedProgram

    def _execute(self) -> None:
        self.program.executable.run(self.bindings)
