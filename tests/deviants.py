"""Emulated engines that are off in one thing each: what a doctor has to find, on them and through the routes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from anew.chips import load_chip
from anew.device.base import Operation
from anew.device.emulator.engine import EmulatedEngine, EmulatedOperation, EmulatedProgram
from anew.mil import Function, Weights

Bindings = Mapping[str, Tensor]


class OddOperation(EmulatedOperation):
    """Lets its engine spoil what goes in and what comes out."""

    program: OddProgram

    def _execute(self) -> None:
        given = dict(self.bindings)
        self.bindings = self.program.engine.before(self.program, dict(given))
        super()._execute()
        self.bindings = given
        self.program.engine.after(self.program, given)


class OddProgram(EmulatedProgram):
    """A program and the kinds of its operations."""

    def __init__(self, engine: OddEngine, entry: Function) -> None:
        super().__init__(engine, entry)
        self.engine, self.kinds = engine, {op.kind for op in entry.ops}

    def operation(self) -> Operation:
        """See LoadedProgram."""
        return OddOperation(self)


@dataclass
class OddEngine(EmulatedEngine):
    """An engine of which a test spoils one thing."""

    numerics: str = "exact"

    def before(self, program: OddProgram, bindings: Bindings) -> Bindings:
        """The buffers that a run takes for those that were bound."""
        return bindings

    def after(self, program: OddProgram, bindings: Bindings) -> None:
        """Spoil what a run wrote."""

    def _compile(self, text: str, weights: Weights, function: str | None) -> OddProgram:
        return OddProgram(self, super()._compile(text, weights, function).entry)


class InTextOrder(OddEngine):
    """Takes the buffers by the order of the names and the ports by the order of the text."""

    def before(self, program: OddProgram, bindings: Bindings) -> Bindings:
        """See OddEngine."""
        named = [port.name for port in program.inputs]
        if len({tuple(bindings[name].shape) for name in named}) > 1:
            return bindings
        return bindings | dict(zip(named, [bindings[name] for name in sorted(named)], strict=True))


class Packed(OddEngine):
    """Writes results without padding between rows."""

    def after(self, program: OddProgram, bindings: Bindings) -> None:
        """See OddEngine."""
        for port in program.outputs:
            found = bindings[port.name]
            if not found.is_contiguous():
                memory = found.contiguous().flatten()
                found.zero_()
                found.as_strided((memory.numel(),), (1,)).copy_(memory)


class OneOff(OddEngine):
    """One operation errs."""

    def __init__(self, kind: str, factor: float) -> None:
        super().__init__(load_chip("m4"))
        self.kind, self.factor = kind, factor

    def after(self, program: OddProgram, bindings: Bindings) -> None:
        """See OddEngine."""
        if program.kinds - {"const"} == {self.kind}:
            for port in program.outputs:
                bindings[port.name].mul_(self.factor)


class Forgetful(OddEngine):
    """Knows a program by its text alone, as a cache might."""

    def _compile(self, text: str, weights: Weights, function: str | None) -> OddProgram:
        first: Any = self.__dict__.setdefault("first", {}).setdefault(text, weights)
        return super()._compile(text, first, function)
