"""Frozen weights as constants of lean programs: which instances of a region have them, and whether they hold.

An instance is a set of frozen tensors that a region is called with: those of one layer. Calls that measure take weights
as inputs. At the first call that does not, when all layers have measured, the instances that are waiting are baked
together: each is a procedure of one program, as many to a program as the chip takes. A constant is a copy: an instance
whose weights change is found out, measures with weights as inputs, and is baked again at its next call but one. So are
all instances when fewer products can do without scales than before: that makes another lean plan.
"""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from anew.compiler.bake import QUANTIZED, Baked, bake
from anew.frontend.baked_instance import Place, Seen
from anew.frontend.binding import Binding, Variant
from anew.frontend.scales import weight_exponent
from anew.frontend.staleness import late
from anew.frontend.weight_store import WeightStore, magnitude
from anew.mil.printer import ProgramPrinter
from anew.mil.program import Program
from anew.plan import Plan

if TYPE_CHECKING:
    from anew.frontend.session import Session

#: Part of the programs, and of the compiles, of a process that may be spent on constants: new shapes need some, too.
SHARE = 0.75
#: Why nothing is baked where operands have no scales.
NO_LEAN = "only lean programs have constants, and with scaling 'none' there are none"


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


@dataclass(frozen=True)
class _Form:
    """A plan, and the same with constants in place of weights.

    Attributes:
        plain: of the lean plan, the products without scales; None for the plan that measures, which is never compiled
            with constants: it tells which weights can be some.
    """

    plain: frozenset[int] | None
    plan: Plan
    baked: Baked


class Bank:
    """The baked instances of one compiled plan.

    Args:
        session: whose device, options and counts hold.
        weights: as uploaded for the plan.
        plan: the one that measures, with weights as inputs. make_lean: makes its lean ones.
        frozen: names of the ports that are frozen weights.
    """

    def __init__(
        self,
        session: Session,
        weights: WeightStore,
        plan: Plan,
        make_lean: Callable[[frozenset[int]], Plan],
        frozen: set[str],
    ) -> None:
        self.session = session
        self.weights = weights
        self.plan = plan
        self.make_lean = make_lean
        matrices = {port.name for port in plan.inputs if port.name in frozen and len(port.shape) == 2}
        self.form = self._form(None, plan, matrices)
        self.ports = list(dict.fromkeys(kernel.port for kernel in self.form.baked.kernels))
        self.names = frozenset(port.name for port in self.ports)
        self.binding: Binding | None = None
        self.seen: dict[tuple[int, ...], Seen] = {}
        self.reason = "" if session.options.scaling == "operands" else NO_LEAN

    @property
    def bakes(self) -> bool:
        """Whether lean calls are to have constants."""
        return bool(self.ports) and not self.reason

    @property
    def eight_bits(self) -> frozenset[str]:
        """Ports whose weights have 8 bits: where they are inputs, too, so that every call computes the same."""
        return self.names if self.session.options.base_bits == 8 else frozenset()

    @property
    def nbytes(self) -> int:
        """Bytes of one instance's constants."""
        return self.form.baked.nbytes

    def take_inputs(self, args: Sequence[Tensor]) -> None:
        """Say that a call takes its weights as inputs; a later one may have constants."""
        if self.bakes:
            self._look(args).waits = True

    def find(self, args: Sequence[Tensor], plain: frozenset[int], measured: Binding) -> tuple[Binding, Variant] | None:
        """The baked lean program for these arguments, with what meets its ports; None to measure. May bake.

        Args:
            plain: products without scales. measured: of the plan that measures.
        """
        instance = self._look(args)
        if self.form.plain != plain:
            self._drop()
        if instance.variant is None and instance.waits:
            self._bake(plain, measured)
        if instance.variant is None or self.binding is None:
            return None
        return self.binding, instance.variant

    def check(self) -> None:
        """Read all baked weights whole; those that changed go back to weights as inputs."""
        for instance in list(self.seen.values()):
            if instance.variant is not None:
                self._compare(instance, whole=True)

    def use(self) -> BakedUse:
        """What became of the plan's frozen weights."""
        held = [s for s in self.seen.values() if s.variant is not None]
        notes = [f"'{port}': {reason}" for port, reason in self.form.baked.refused.items()]
        bits, chip = self.session.options.base_bits, self.session.device.chip
        if bits == 8 and chip.operations[QUANTIZED] == "folded":
            notes.append(f"{chip.name} makes 8-bit constants fp16 when it compiles")
        return BakedUse(
            name=self.plan.name,
            bits=bits,
            weights=len(self.ports),
            layers=len(held),
            programs=len({id(s.place) for s in held}),
            bytes=len(held) * self.nbytes,
            notes=tuple([*notes, self.reason] if self.reason else notes),
        )

    def baked_plan(self) -> Plan:
        """The plan of the baked programs, without text and constants."""
        baked = self.form.baked
        operations = dict(Counter(op.kind for op in baked.function.ops if not op.constant))
        name = baked_name(self.plan)
        return replace(self.form.plan, name=name, text="", weights=b"", inputs=baked.inputs, operations=operations)

    def _form(self, plain: frozenset[int] | None, plan: Plan, wanted: Set[str]) -> _Form:
        return _Form(plain, plan, bake(plan, wanted, self.session.options.base_bits, self.session.device.chip))

    def _look(self, args: Sequence[Tensor]) -> Seen:
        """The instance of these arguments; one whose weights changed has no program any more."""
        instance = self._instance([args[port.argument] for port in self.ports])
        if instance.variant is not None:
            self._compare(instance, whole=False)
        return instance

    def _drop(self) -> None:
        """Let go of all programs."""
        for instance in self.seen.values():
            if instance.variant is not None:
                instance.forget()

    def _compare(self, instance: Seen, *, whole: bool) -> None:
        """Let a baked instance that has other weights by now go back to weights as inputs.

        What the samples of each call cannot see is a warning: earlier calls may have computed with old weights.
        """
        as_marked = instance.marked()
        if as_marked and not instance.rewritten(whole=whole):
            return
        instance.forget()
        for weight in instance.tensors():
            self.weights.forget(weight)  # what was uploaded may be as old
        self.session.counts.stale += 1
        if as_marked:
            what, cure = f"{self.plan.name}: a frozen weight", "After such a write call anew.check_baked(model)"
            warnings.warn(late(what, cure), stacklevel=2)

    def _instance(self, weights: Sequence[Tensor]) -> Seen:
        key = tuple(map(id, weights))
        known = self.seen.get(key)
        if known is None or any(ref() is not w for ref, w in zip(known.weights, weights, strict=True)):
            known = self.seen[key] = Seen(weights)
            weakref.finalize(weights[0], _forget, weakref.ref(self), key).atexit = False
        return known

    def _bake(self, plain: frozenset[int], measured: Binding) -> None:
        if self.form.plain != plain:
            self.form = self._form(plain, self.make_lean(plain), self.names)
            self.binding = measured.over(self.form.plan)
        waiting = [instance for instance in self.seen.values() if instance.ready]
        groups = list(self._groups(waiting))
        self.reason = self._over_budget(len(groups), len(waiting) * self.nbytes)
        if self.reason:
            self._drop()
            return
        for group in groups:
            self._compile(group)

    def _groups(self, waiting: list[Seen]) -> Iterator[list[Seen]]:
        """Instances by the program that they share."""
        device = self.session.device
        most = min(device.chip.procedures, max(device.chip.weight_bytes // max(self.nbytes, 1), 1))
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
        baked, printer, found = self.form.baked, ProgramPrinter(), []
        for i, instance in enumerate(group):
            weights = dict(zip([p.name for p in self.ports], instance.tensors(), strict=True))
            exponents = {name: weight_exponent(magnitude(w)) for name, w in weights.items()}
            for kernel in baked.kernels:
                kernel.fill(weights[kernel.port.name], exponents[kernel.port.name])
            baked.function.name = f"instance_{i:03d}"
            printer.add(baked.function)
            instance.remember()
            ports = [kernel.port for kernel in baked.kernels]
            found.append({p.operand: exponents[p.name] for p in ports if p.operand is not None})
        program = Program({})
        procedures = self.session.device.compile_procedures(*printer.finish(program.version, program.build_info))
        place = Place(procedures)
        for instance, exponents_by_operand, procedure in zip(group, found, procedures.values(), strict=True):
            instance.place = place
            operation = procedure.operation()
            instance.variant = Variant(baked_name(self.plan), baked.inputs, operation, exponents_by_operand)


def _forget(bank: weakref.ref[Bank], key: tuple[int, ...]) -> None:
    """Forget an instance whose first weight died; weights that outlive the bank do not keep its programs."""
    alive = bank()
    if alive is not None:
        alive.seen.pop(key, None)
