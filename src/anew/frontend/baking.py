"""Frozen weights as constants of programs of their own: which instances of a region have them, and whether they hold.

An instance is a set of frozen tensors that a region is called with: those of one layer. Its first call takes weights as
inputs. At its second call, when all layers have been seen, the instances that are waiting are baked together: each is a
procedure of one program, as many to a program as the chip takes. A constant is a copy: an instance whose weights change
is found out, goes back to weights as inputs, and is baked again at its next call but one.
"""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from anew.compiler.bake import QUANTIZED, Baked, bake
from anew.device.base import LoadedProgram
from anew.frontend.binding import Variant
from anew.frontend.scales import weight_exponent
from anew.frontend.staleness import Original, late
from anew.frontend.weight_store import WeightStore, magnitude
from anew.mil.printer import ProgramPrinter
from anew.mil.program import Program
from anew.plan import InputPort, Plan

if TYPE_CHECKING:
    from anew.frontend.session import Session

#: Part of the programs, and of the compiles, of a process that may be spent on constants: new shapes need some, too.
SHARE = 0.75


@dataclass(frozen=True)
class BakedUse:
    """What became of the frozen weights of one program.

    Attributes:
        name: the plan's. bits: of an element of the constants.
        weights: how many of a layer's weights are constants. layers: how many layers are baked.
        programs: loaded for them. bytes: of their constants, all layers together.
        notes: why other frozen weights, or all of them, stay inputs; what the chip does with constants.
    """

    name: str
    bits: int
    weights: int
    layers: int
    programs: int
    bytes: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        held = f"{self.weights} weights of {self.layers} layers are constants of {self.bits} bits"
        where = f"{held} in {self.programs} programs, {self.bytes / 1e6:.3g} MB"
        return "; ".join([f"{self.name}: {where if self.layers else 'frozen weights are inputs'}", *self.notes])


def baked_name(plan: Plan) -> str:
    """What the runs of a plan's baked programs are counted under."""
    return f"{plan.name} baked"


class _Place:
    """A loaded program of several procedures; it is released when no variant holds it."""

    def __init__(self, procedures: dict[str, LoadedProgram]) -> None:
        weakref.finalize(self, next(iter(procedures.values())).release).atexit = False


class Seen:
    """One instance: its weights, what they were when last looked at, and its program once it has one."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = [weakref.ref(w) for w in weights]
        self.calls = 0
        self.variant: Variant | None = None
        self.place: _Place | None = None
        self.originals: list[Original] = []

    def tensors(self) -> list[Tensor]:
        """The weights that are alive."""
        return [w for ref in self.weights if (w := ref()) is not None]

    def remember(self) -> None:
        """Note what the weights are now."""
        self.originals = [Original(w) for w in self.tensors()]

    def forget(self) -> None:
        """Go back to weights as inputs."""
        self.variant = self.place = None
        self.calls = 0

    def marked(self) -> bool:
        """Whether the weights are those remembered as far as storage, version and samples tell."""
        return all(original.marked(w) for original, w in zip(self.originals, self.tensors(), strict=True))

    def rewritten(self, *, whole: bool) -> bool:
        """Whether any element of the weights is another than remembered; looks at a tenth of them, or at the whole."""
        look = Original.rewritten_anywhere if whole else Original.rewritten
        return any(look(original, w) for original, w in zip(self.originals, self.tensors(), strict=True))


class Bank:
    """The baked instances of one compiled plan.

    Args:
        session: whose device, options and counts hold.
        weights: as uploaded for the plan; those that are baked need no place there.
        plan: with weights as inputs.
        frozen: names of the ports that are frozen weights.
    """

    def __init__(self, session: Session, weights: WeightStore, plan: Plan, frozen: set[str]) -> None:
        self.session = session
        self.weights = weights
        self.plan = plan
        matrices = {port.name for port in plan.inputs if port.name in frozen and len(port.shape) == 2}
        self.baked: Baked = bake(plan, matrices, session.options.base_bits, session.device.chip)
        self.ports = list(dict.fromkeys(kernel.port for kernel in self.baked.kernels))
        self.seen: dict[tuple[int, ...], Seen] = {}
        self.reason = ""

    def find(self, args: Sequence[Tensor]) -> Variant | None:
        """The baked program for these arguments, None to take weights as inputs. May bake, or find a change."""
        if not self.ports or self.reason:
            return None
        instance = self._instance([args[port.argument] for port in self.ports])
        instance.calls += 1
        if instance.variant is not None and self._stale(instance, whole=False):
            instance.calls = 1
        if instance.variant is None and instance.calls > 1:
            self._bake()
        return instance.variant

    def eight_bits(self, port: InputPort) -> bool:
        """Whether a port's weight has 8 bits: where it is an input, too, so that every call computes the same."""
        return self.session.options.base_bits == 8 and port in self.ports

    def check(self) -> None:
        """Read all baked weights whole; those that changed go back to weights as inputs."""
        for instance in list(self.seen.values()):
            if instance.variant is not None:
                self._stale(instance, whole=True)

    def use(self) -> BakedUse:
        """What became of the plan's frozen weights."""
        held = [s for s in self.seen.values() if s.variant is not None]
        notes = [f"'{port}': {reason}" for port, reason in self.baked.refused.items()]
        bits, chip = self.session.options.base_bits, self.session.device.chip
        if bits == 8 and chip.operations[QUANTIZED] == "folded":
            notes.append(f"{chip.name} makes 8-bit constants fp16 when it compiles")
        return BakedUse(
            name=self.plan.name,
            bits=bits,
            weights=len(self.ports),
            layers=len(held),
            programs=len({id(s.place) for s in held}),
            bytes=len(held) * self.baked.nbytes,
            notes=tuple([*notes, self.reason] if self.reason else notes),
        )

    def baked_plan(self) -> Plan:
        """The plan of the baked programs, without text and constants."""
        operations = Counter(op.kind for op in self.baked.function.ops if not op.constant)
        name, inputs = baked_name(self.plan), self.baked.inputs
        return replace(self.plan, name=name, text="", weights=b"", inputs=inputs, operations=dict(operations))

    def _stale(self, instance: Seen, *, whole: bool) -> bool:
        """Whether a baked instance has other weights by now; then it goes back to weights as inputs.

        What the samples of each call cannot see is a warning: earlier calls may have computed with old weights.
        """
        as_marked = instance.marked()
        if as_marked and not instance.rewritten(whole=whole):
            return False
        instance.forget()
        self.session.counts.stale += 1
        if as_marked:
            what, cure = f"{self.plan.name}: a frozen weight", "After such a write call anew.check_baked(model)"
            warnings.warn(late(what, cure), stacklevel=2)
        return True

    def _instance(self, weights: Sequence[Tensor]) -> Seen:
        key = tuple(map(id, weights))
        known = self.seen.get(key)
        if known is None or any(ref() is not w for ref, w in zip(known.weights, weights, strict=True)):
            known = self.seen[key] = Seen(weights)
            weakref.finalize(weights[0], self.seen.pop, key, None).atexit = False
        return known

    def _bake(self) -> None:
        waiting = [s for s in self.seen.values() if s.variant is None and len(s.tensors()) == len(s.weights)]
        groups = list(self._groups(waiting))
        self.reason = self._over_budget(len(groups), len(waiting) * self.baked.nbytes)
        if self.reason:
            return
        for group in groups:
            self._compile(group)

    def _groups(self, waiting: list[Seen]) -> Iterator[list[Seen]]:
        """Instances by the program that they share."""
        device = self.session.device
        most = min(device.chip.procedures, max(device.chip.weight_bytes // max(self.baked.nbytes, 1), 1))
        size = most if device.takes_procedures else 1
        for first in range(0, len(waiting), size):
            yield waiting[first : first + size]

    def _over_budget(self, programs: int, nbytes: int) -> str:
        """Why so many programs more, or bytes in them, are too many; empty when they are not."""
        device = self.session.device
        held = sum(bank.use().bytes for bank in self.session.banks)
        if held + nbytes > device.chip.weight_bytes:
            return (
                f"{nbytes} bytes of constants more would be too many: {held} bytes are held by now, of the "
                f"{device.chip.weight_bytes} that {device.chip.name} maps"
            )
        budgets = [("loaded programs", device.statistics.programs, device.chip.loaded_programs)]
        if device.chip.switches["compile_budget"].value == "wrapper":
            budgets.append(("compiles", device.statistics.compiles, device.chip.compiles))
        for what, spent, most in budgets:
            if spent + programs > SHARE * most:
                return (
                    f"{programs} programs for constants would be too many: of the {most} {what} that "
                    f"{device.chip.name} takes in a process, {spent} are spent and {SHARE:.0%} may be"
                )
        return ""

    def _compile(self, group: list[Seen]) -> None:
        printer = ProgramPrinter()
        found = []
        for i, instance in enumerate(group):
            weights = dict(zip([p.name for p in self.ports], instance.tensors(), strict=True))
            exponents = {name: self._exponent(w) for name, w in weights.items()}
            for kernel in self.baked.kernels:
                kernel.fill(weights[kernel.port.name], exponents[kernel.port.name])
            self.baked.function.name = f"instance_{i:03d}"
            printer.add(self.baked.function)
            instance.remember()
            for weight in instance.tensors():
                self.weights.forget(weight)
            found.append({p.operand: exponents[p.name] for p in self.ports if p.operand is not None})
        program = Program({})
        procedures = self.session.device.compile_procedures(*printer.finish(program.version, program.build_info))
        place = _Place(procedures)
        for instance, exponents_by_operand, procedure in zip(group, found, procedures.values(), strict=True):
            instance.place = place
            instance.variant = Variant(
                baked_name(self.plan), self.baked.inputs, procedure.operation(), exponents_by_operand
            )

    def _exponent(self, weight: Tensor) -> int:
        """The exponent that the weight would be uploaded with."""
        if self.session.options.scaling != "operands":
            return 0
        return weight_exponent(magnitude(weight))
