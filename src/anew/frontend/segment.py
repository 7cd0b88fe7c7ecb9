"""One compiled program at work, with a scale state for each region instance.

Most calls run a lean program, which measures nothing and has factors only where products need them. It was told so by
the calls that measure: an instance's first ones, then one in so many, and any whose results left their range.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from anew.device.base import Device
from anew.errors import AnewError
from anew.frontend.binding import Binding, Found, Variant
from anew.frontend.held import Holding, Piece
from anew.frontend.scale_store import ScaleStore, program_key
from anew.frontend.scales import ScaleState
from anew.frontend.weight_store import BEYOND, WeightStore
from anew.plan import Plan

if TYPE_CHECKING:
    from anew.frontend.baking import Bank

#: Runs that a call may take until its scales fit.
ATTEMPTS = 16
#: Part of the programs that a process may load beyond which no lean ones are made.
SHARE = 0.5


@dataclass
class Statistics:
    """Counts of one session.

    Attributes:
        rescaled: region calls repeated after calibration. calibrations: runs spent on first calls.
        stale: constants found to be no longer the weights they were made from, by layer and program.
        calls: calls of each compiled graph, by name. dispatches: runs of each program, by its plan's name.
    """

    rescaled: int = 0
    calibrations: int = 0
    stale: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    dispatches: Counter[str] = field(default_factory=Counter)


class Segment:
    """A plan, its programs on a device, and a scale state for each region instance.

    Call it with the graph's arguments; it returns the graph's results. With a ``bank``, the lean programs of instances
    have frozen weights as constants.

    Args:
        make_lean: makes the plan in which the products of the given numbers have no scales, and nothing is measured.
    """

    def __init__(
        self,
        plan: Plan,
        make_lean: Callable[[frozenset[int]], Plan],
        device: Device,
        weights: WeightStore,
        scales: ScaleStore,
        statistics: Statistics,
        scaling: str = "operands",
        bank: Bank | None = None,
    ) -> None:
        self.plan = plan
        self.key = program_key(plan)
        self.scales = scales
        self.scaling = scaling == "operands"
        self.device = device
        self.statistics = statistics
        self.program = device.compile(plan.text, plan.weights)
        self.measuring = Variant(plan.name, plan.inputs, self.program.operation())
        self.bank = bank
        weakref.finalize(self, self.program.release).atexit = False  # its place in the device's budget
        self.binding = Binding(plan, device, weights, self.scaling, bank.eight_bits if bank else frozenset())
        self.make_lean = make_lean
        self._lean: _Lean | None = None

    @property
    def holding(self) -> Holding | None:
        """Of a backward program, which of its results may stay in their buffers."""
        return self.binding.holding

    @holding.setter
    def holding(self, holding: Holding) -> None:
        self.binding.holding = holding

    def __call__(self, args: Sequence[Tensor]) -> list[Tensor | None]:
        """Run the program on the graph's arguments."""
        state = self.state(args)
        peaks = self.binding.cotangent_peaks(args)
        if not math.isfinite(sum(peaks.values())):
            return self.binding.nan_results()
        held = self.holding.parameters(args) if self.holding else {}
        results = self._call_lean(state, args, peaks, held)
        if results is None:
            found, values = self._measured(state, args, peaks, held)
            results = self.binding.results(args, found, values, held)
        return results

    def state(self, args: Sequence[Tensor]) -> ScaleState:
        """The scale state of the instance these arguments belong to, known by its first weight if it has any."""
        first = next((port.argument for port in self.plan.inputs if port.kind == "weight"), None)
        return self.scales.state(None if first is None else args[first], self.key, self.plan)

    def _settle(self) -> None:
        """Let what was to be found out about gradients beside this run be known."""
        if self.holding:
            self.holding.gradients.looks.settle()

    def _measured(
        self, state: ScaleState, args: Sequence[Tensor], peaks: dict[str, float], held: dict[int, Tensor]
    ) -> tuple[dict[str, Found], np.ndarray]:
        """What a good run of the measuring program left, and the values of its maxima."""
        self._settle()  # it may be of the same instance, and then changes its exponents
        if self.bank is not None:
            self.bank.take_inputs(args)
        maxima = np.zeros(self.plan.scales.maxima_rows + self.plan.scales.found_rows)
        uploaded = self.binding.upload(self.measuring, args, maxima)
        state.fix(uploaded.exponents)
        for attempt in range(ATTEMPTS):
            cotangents = self.binding.cotangents(args, peaks, state.cotangent)
            self.statistics.dispatches[self.measuring.name] += 1
            outputs = self.binding.run(self.measuring, state, args, uploaded.buffers, cotangents)
            for port in self.plan.inputs:
                if port.name in peaks and port.maximum_row is not None:
                    maxima[port.maximum_row] = peaks[port.name] * 2.0**cotangents.exponent
            found = self.binding.read(outputs, state, cotangents, maxima, held)
            values, reach = state.values(maxima), self.binding.reach(maxima, state, cotangents)
            verdict = state.review(maxima) if self.scaling else "good"
            if verdict == "good":
                self._count(state, attempt)
                state.settle(values, uploaded.largest, reach, cotangents.share)
                self.scales.settled(self.key)
                return found, values
            if verdict == "overflow":
                self._lower_cotangent(state)
        raise AnewError(
            f"{self.plan.name}: no operand scales fit after {ATTEMPTS} runs; the values of this region span more than "
            "fp16 holds"
        )

    def _call_lean(
        self, state: ScaleState, args: Sequence[Tensor], peaks: dict[str, float], held: dict[int, Tensor]
    ) -> list[Tensor | None] | None:
        """The results of the lean program; None if this call is to measure, or turns out to have to."""
        lean = None if state.due or not self.scaling else self._find_lean(args)
        if lean is None:
            return None
        binding, variant = lean
        maxima = np.zeros(binding.plan.scales.found_rows)
        uploaded = binding.upload(variant, args, maxima)
        cotangents = binding.cotangents(args, peaks, state.cotangent)
        used = state.relaxed(binding.plan.scales, uploaded.exponents)
        if used is None or not state.holds_for(cotangents.share):
            return None
        self.statistics.dispatches[variant.name] += 1
        outputs = binding.run(variant, used, args, uploaded.buffers, cotangents)
        self._settle()
        later = self.holding is not None and self.holding.gradients.later(held.values())
        found = binding.read(outputs, used, cotangents, maxima, held, later=later)

        def good() -> bool:
            return used.in_range(maxima) and state.within(binding.reach(maxima, used, cotangents))

        def judge() -> None:
            if not good():
                self._replace(found, state, args, peaks, held)

        if not good():
            self.statistics.rescaled += 1
            return None
        state.calls += 1
        if self.holding is not None and later:
            self.holding.gradients.looks.start(lambda: binding.look(found, maxima), judge)
        return binding.results(args, found, maxima, held)

    def _replace(self, found: dict[str, Found], state: ScaleState, *arguments: Any) -> None:
        """Put the gradients of a run that measures in the place of those that were found not to be good."""
        self.statistics.rescaled += 1
        state.calls -= 1
        pieces = {name: piece for name, piece in found.items() if isinstance(piece, Piece)}
        for piece in pieces.values():  # in case there is no such run
            piece.squares = math.nan
        measured, _ = self._measured(state, *arguments)
        for name, piece in pieces.items():
            vars(piece).update(vars(measured[name]))

    def _find_lean(self, args: Sequence[Tensor]) -> tuple[Binding, Variant] | None:
        """The lean program for what all instances agree on, with what meets its ports; None to measure.

        Those of a bank measure until they are baked, the others where no more programs should be loaded.
        """
        plain = self.scales.plain(self.key)
        if self.bank is not None and self.bank.bakes:
            return self.bank.find(args, plain, self.binding)
        if self._lean is None or self._lean.plain != plain:
            if self.device.statistics.programs >= SHARE * self.device.chip.loaded_programs:
                return None
            self._lean = _Lean(self.make_lean(plain), plain, self.binding)
        return self._lean.binding, self._lean.variant

    def _count(self, state: ScaleState, attempts: int) -> None:
        if not state.calibrated:
            self.statistics.calibrations += attempts
        elif attempts:
            self.statistics.rescaled += 1
        state.calibrated = True

    def _lower_cotangent(self, state: ScaleState) -> None:
        if not self.binding.backward:
            raise AnewError(f"{self.plan.name}: a value inside this region is {BEYOND}")
        state.cotangent -= 3


class _Lean:
    """A lean program; it is released with the last reference."""

    def __init__(self, plan: Plan, plain: frozenset[int], measured: Binding) -> None:
        program = measured.device.compile(plan.text, plan.weights)
        weakref.finalize(self, program.release).atexit = False
        self.plain = plain
        self.variant = Variant(plan.name, plan.inputs, program.operation())
        self.binding = measured.over(plan)
