"""A published program as a case that runs on the emulated engine, and what became of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from anew.chips import Chip, known_chips
from anew.device.base import DeviceError
from anew.device.emulator.engine import EmulatedEngine
from anew.mil import Builder, MilError, Value, Weights, print_program

#: The option of a switch that refuses, and the one that accepts, where they are not called so.
_OPTIONS = {"row_pitch": ("padded", "packed"), "compile_budget": ("wrapper", "none")}

#: A case: raises DeviceError or MilError where the engine refuses, AssertionError where values are wrong.
Run = Callable[[EmulatedEngine], None]


@dataclass(frozen=True)
class Case:
    """A program with inputs and, at double precision, the outputs it must have.

    ``packed`` binds memory without padding between rows, as the projects did that met status 0x1d.
    """

    text: str
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    expected: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Weights = b""
    tolerance: float = 1e-2
    function: str | None = None
    packed: bool = False

    def __call__(self, engine: EmulatedEngine) -> None:
        """Compile, bind, execute, compare: the norm of the difference over that of the expected output."""
        program = engine.compile(self.text, self.weights, self.function)
        buffers = {}
        for name, port in program.ports.items():
            shape = port.type.shape
            packed = torch.empty(shape, dtype=port.dtype)
            buffers[name] = packed if self.packed else engine.buffers.lease(shape, port.dtype)
        for name, value in self.inputs.items():
            buffers[name].copy_(value)
        operation = program.operation()
        operation.bind(buffers)
        operation.execute()
        assert set(self.expected) <= {port.name for port in program.outputs}
        for name, wanted in self.expected.items():
            found = buffers[name].double()
            assert (found - wanted).norm() <= self.tolerance * wanted.norm(), f"{name} is off"
        program.release()


def built(
    builder: Builder, inputs: Mapping[str, Tensor], expected: Mapping[Value, Tensor], tolerance: float = 1e-2
) -> Case:
    """A case of what a builder holds; ``expected`` gives the results and their values."""
    text, weights = print_program(builder.program(list(expected)))
    return Case(text, inputs, {v.name: x for v, x in expected.items()}, weights, tolerance)


def packed(case: Case) -> Case:
    """The same case with packed memory bound."""
    return Case(case.text, case.inputs, case.expected, case.weights, case.tolerance, packed=True)


def text(ports: str, body: str, results: str) -> str:
    """MIL text of one function."""
    return f"program(1.3)\n{{\n  func main<ios18>({ports}) {{\n{body}\n  }} -> ({results});\n}}\n"


def numbers(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers that fp16 holds, as doubles."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).half().double()


@dataclass(frozen=True)
class Row:
    """One row of the published lists.

    Attributes:
        key: as in the list; a letter tells apart the programs of one row.
        program: in words.
        seen: the chip and the system of the report, as far as it says.
        source: who reported it.
        cases: makes the programs.
        stage: ``ok``, or where it is refused: ``parse``, ``compile``, ``load``, ``eval``.
        chips: where that holds; on the others an accepted row is refused, a rejected one runs.
        reason: a pattern of the refusal's sentence; where it is empty, the sentence names the switch.
        switches: the disputed facts that decide the row.
        setting: switches that the report presumes.
        runs_if_allowed: False where anew itself lacks what a switch would allow.
    """

    key: str
    program: str
    seen: str
    source: str
    cases: Callable[[], Sequence[Run]]
    stage: str = "ok"
    chips: tuple[str, ...] = tuple(known_chips())
    reason: str = ""
    switches: tuple[str, ...] = ()
    setting: Mapping[str, str] = field(default_factory=dict)
    runs_if_allowed: bool = True


class Outcome(NamedTuple):
    """What became of one case: ``ok``, or the stage that refused it with its sentence."""

    stage: str
    sentence: str


def outcomes(row: Row, chip: Chip) -> list[Outcome]:
    """Run every case of a row on a chip."""
    return [_outcome(run, EmulatedEngine(chip)) for run in row.cases()]


def _outcome(run: Run, engine: EmulatedEngine) -> Outcome:
    try:
        run(engine)
    except MilError as error:
        return Outcome("parse", str(error))
    except DeviceError as error:
        stage = "eval" if error.stage in ("bind", "execute") else error.stage
        return Outcome(stage, re.sub("^[a-z]+: ", "", str(error)))
    return Outcome("ok", "")


def option(switch: str, refusing: bool) -> str:
    """The option of a switch that refuses, or that accepts."""
    refuse, accept = _OPTIONS.get(switch, ("refuse", "allow"))
    return refuse if refusing else accept


def number(key: str) -> str:
    """The number in the published list: a row's key without the letter of its program."""
    return key.rstrip("abcdef")
