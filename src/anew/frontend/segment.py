"""One compiled program at work: tensors in, tensors out, scales kept, buffers leased.

The boundary contract: tensors outside are fp32 and unscaled. Cotangents are brought to a range of fp16 that suits the
backward program by one power of two, which is divided out of the gradients in fp32.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from anew.compiler.bake import as_quantized
from anew.compiler.custom_ops import MASKED
from anew.device.base import Device, Operation
from anew.device.copies import Copy
from anew.device.transfer import load, measure, store
from anew.errors import AnewError
from anew.frontend.held import Holding, Piece
from anew.frontend.instances import ByTensor
from anew.frontend.scale_store import ScaleStore, program_key
from anew.frontend.scales import FP16_MAX, ScaleState, exponent_for, weight_exponent
from anew.frontend.staleness import Mark, Original, late, mark
from anew.plan import MAXIMA, SCALES, InputPort, Plan

if TYPE_CHECKING:
    from anew.frontend.baking import Bank

#: A value below minus this is a mask's "minus infinity", not a number to keep.
MASK_MAGNITUDE = 1e30
#: Largest exponent of a cotangent's scale: fp32 holds the factor and its inverse.
LARGEST_COTANGENT = 126
#: How many powers of two a cotangent may be smaller than wanted, if it then need not be copied.
SERVES = 4
BEYOND = f"beyond fp16's {FP16_MAX:.0f}; the engine computes in fp16 only"
#: Runs that a call may take until its scales fit.
ATTEMPTS = 16


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


@dataclass(frozen=True)
class Variant:
    """A program that a segment may run: the ports that it reads and, of baked weights, the exponents by operand."""

    name: str
    inputs: tuple[InputPort, ...]
    operation: Operation
    exponents: dict[int, int] = field(default_factory=dict)


@dataclass
class UploadedWeight:
    """A weight in an fp16 buffer: what it was then (storage and version; all of it if frozen), and its exponent.

    ``largest`` is its largest magnitude, before the exponent. ``mark`` is there if an optimizer wrote
    the buffer, and ``checksum``, of all of the weight.
    """

    source: tuple[int, int]
    buffer: Tensor
    exponent: int
    largest: float
    original: Original | None
    mark: Mark | None = None
    checksum: int | None = None


class WeightStore:
    """Weights as uploaded, shared by all programs of a session."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._uploaded: ByTensor[dict[tuple[bool, bool], UploadedWeight]] = ByTensor()

    def upload(self, name: str, weight: Tensor, scaled: bool, fresh: bool, eight_bits: bool = False) -> UploadedWeight:
        """Return the weight's buffer; converts it again when it changed since.

        A ``fresh`` upload misses no change: a weight that trains is converted again, a frozen one is looked at, and so
        is one whose buffer an optimizer of :mod:`anew.optim` wrote, which reads all of it itself at its next step. With
        ``eight_bits`` the buffer gets the numbers that the weight has where it is a constant of 8 bits.

        Raises AnewError with ``name`` when fp16 cannot hold the weight.
        """
        source = (weight.data_ptr(), weight._version)
        forms = self._uploaded.get(weight, dict)
        form = scaled, eight_bits
        known = forms.get(form)
        if known is None or known.source != source or (fresh and self._outdated(name, known, weight)):
            forms.pop(form, None)  # a failure must not leave a buffer that is half of both
            buffer = known.buffer if known else self.device.buffers.lease(tuple(weight.shape))
            original = None if weight.requires_grad else Original(weight)
            if eight_bits and math.isfinite(magnitude(weight)):
                weight = as_quantized(weight, weight_exponent(magnitude(weight)))
            guess = known.exponent if known else 0  # a step seldom changes it, and the peak comes with the writing
            peak = store(buffer, weight, guess)
            exponent = weight_exponent(peak) if scaled and math.isfinite(peak) else 0
            if not peak * 2.0**exponent <= FP16_MAX:
                raise AnewError(f"{name} {list(weight.shape)} reaches {peak:.4g}, {BEYOND}")
            if fresh:  # the other form, if there is one, is out of date too
                forms.clear()
            if exponent != guess:
                store(buffer, weight, exponent)
            known = forms[form] = UploadedWeight(source, buffer, exponent, peak, original)
        return known

    def _outdated(self, name: str, known: UploadedWeight, weight: Tensor) -> bool:
        """Whether an uploaded weight may have changed; a change of a frozen one that is seen late is a warning."""
        if known.mark is not None:
            return known.mark != mark(weight)
        if known.original is None or weight.requires_grad or not known.original.marked(weight):
            return True
        if not known.original.rewritten(weight):
            return False
        warnings.warn(late(name, "Write in place, without .data"), stacklevel=2)
        return True

    def rewritable(self, weight: Tensor) -> tuple[UploadedWeight, bool] | None:
        """The buffer that a weight's optimizer may write and whether it is scaled; None if there is not exactly one."""
        forms = self._uploaded.find(weight) or {}
        if len(forms) != 1:
            return None
        (((scaled, eight_bits), known),) = forms.items()
        return None if eight_bits else (known, scaled)

    def forget(self, weight: Tensor) -> None:
        """Give a weight's buffers back."""
        self._uploaded.set(weight, {})


def magnitude(x: Tensor) -> float:
    """The largest magnitude of a tensor; NaN or infinite when one of its elements is."""
    low, high = torch.aminmax(x.detach())
    return max(-float(low), float(high)) if not math.isnan(float(low)) else math.nan


class Segment:
    """A plan, its program on a device, and a scale state for each region instance.

    Call it with the graph's arguments; it returns the graph's results. With a ``bank``, instances whose frozen weights
    are constants of programs of their own run those.
    """

    def __init__(
        self,
        plan: Plan,
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
        self.weights = weights
        self.statistics = statistics
        self.program = device.compile(plan.text, plan.weights)
        self.plain = Variant(plan.name, plan.inputs, self.program.operation())
        self.bank = bank
        weakref.finalize(self, self.program.release).atexit = False  # its place in the device's budget
        self.cotangent_shapes = {port.shape for port in plan.inputs if port.kind == "cotangent"}
        self.backward = bool(self.cotangent_shapes)
        #: Of a backward program, which of its results may stay in their buffers.
        self.holding: Holding | None = None

    def __call__(self, args: Sequence[Tensor]) -> list[Tensor | None]:
        """Run the program on the graph's arguments."""
        state = self.state(args)
        variant = (self.bank and self.bank.find(args)) or self.plain
        peaks = self._cotangent_peaks(args)
        peak = max(peaks.values(), default=0.0)
        if not math.isfinite(sum(peaks.values())):
            return self._nan_results(args)
        maxima = np.zeros(self.plan.scales.maxima_rows + self.plan.scales.found_rows)
        buffers, weights = self._upload(variant, args, maxima)
        state.fix(weights | variant.exponents)
        held = self.holding.parameters(args) if self.holding else {}
        for attempt in range(ATTEMPTS):
            cotangent = self._cotangent_exponent(args, state, peak)
            outputs, exponents = self._run(variant, state, args, buffers, cotangent)
            for port in self.plan.inputs:
                if port.name in peaks and port.maximum_row is not None:
                    maxima[port.maximum_row] = peaks[port.name] * 2.0**cotangent
            results = self._read(outputs, exponents, cotangent, maxima, held)
            values = state.values(maxima)
            verdict = state.review(maxima) if self.scaling else "good"
            if verdict == "good":
                self._count(state, attempt)
                return self._results(args, results, values, held)
            if verdict == "overflow":
                self._lower_cotangent(state)
        raise AnewError(
            f"{self.plan.name}: no operand scales fit after {ATTEMPTS} runs; the values of this region span more than "
            "fp16 holds"
        )

    def state(self, args: Sequence[Tensor]) -> ScaleState:
        """The scale state of the instance these arguments belong to, known by its first weight if it has any."""
        first = next((port.argument for port in self.plan.inputs if port.kind == "weight"), None)
        return self.scales.state(None if first is None else args[first], self.key, self.plan)

    def _upload(
        self, variant: Variant, args: Sequence[Tensor], maxima: np.ndarray
    ) -> tuple[dict[str, Tensor], dict[int, int]]:
        """Bring activations and weights into buffers; returns them by port and the weights' exponents by operand.

        Their largest magnitudes become rows of ``maxima`` where the plan wants them.
        """
        buffers: dict[str, Tensor] = {}
        exponents: dict[int, int] = {}
        for port in variant.inputs:
            x = args[port.argument]
            if port.kind == "weight":
                scaled = self.scaling and port.operand is not None
                name = f"{self.plan.name}: weight '{port.name}'"
                eight_bits = self.bank is not None and self.bank.eight_bits(port)
                uploaded = self.weights.upload(name, x, scaled, not self.backward, eight_bits)
                buffers[port.name], largest = uploaded.buffer, uploaded.largest
                if port.operand is not None:
                    exponents[port.operand] = uploaded.exponent
            elif port.kind == "activation":
                buffers[port.name], largest = self._activation(port, x)
            else:
                continue
            if port.maximum_row is not None:
                maxima[port.maximum_row] = largest
        return buffers, exponents

    def _activation(self, port: InputPort, x: Tensor) -> tuple[Tensor, float]:
        """A buffer with the values of ``x``, and their largest magnitude where the plan wants it."""
        pool = self.device.buffers
        if x.dtype == torch.float16 and not x.requires_grad and x.stride() == self._strides(port):
            if port.maximum_row is None:
                return x, math.nan
            known = pool.magnitude(x)  # a saved activation: it lies in a leased buffer already
            return x, measure(x)[0] if known is None else known
        copy = self.device.copies.find(x)
        if copy is not None and copy.exponent == 0 and copy.buffer.shape == port.shape:
            return copy.buffer, copy.largest
        buffer = pool.lease(port.shape)
        if x.dtype == torch.bool:
            return buffer.copy_(x), 1.0
        largest = store(buffer, x, 0)
        if not largest <= FP16_MAX:
            largest = store(buffer, self._finite(port, x), 0)
        self.device.copies.keep(x, Copy(buffer, 0, largest))
        return buffer, largest

    def _strides(self, port: InputPort) -> tuple[int, ...]:
        return self.device.buffers.strides(port.shape)

    def _finite(self, port: InputPort, x: Tensor) -> Tensor:
        """Masks of -inf or -3.4e38 become finite; anything else beyond fp16 is an error, not a clamp."""
        masked = x < -MASK_MAGNITUDE
        peak = magnitude(x.masked_fill(masked, 0.0))
        if not peak <= FP16_MAX:
            raise AnewError(f"{self.plan.name}: input '{port.name}' {list(port.shape)} reaches {peak:.4g}, {BEYOND}")
        return x.masked_fill(masked, MASKED)

    def _cotangent_peaks(self, args: Sequence[Tensor]) -> dict[str, float]:
        """The largest magnitudes of the cotangents, by port."""
        peaks: dict[str, float] = {}
        for port in self.plan.inputs:
            if port.kind == "cotangent":
                x = args[port.argument]
                copy = self.device.copies.find(x)
                peaks[port.name] = magnitude(x) if copy is None else copy.largest * 2.0**-copy.exponent
        return peaks

    def _cotangent_exponent(self, args: Sequence[Tensor], state: ScaleState, peak: float) -> int:
        """The exponent of the cotangents' scale; that of a copy in a buffer, where its numbers are large enough."""
        if not self.scaling:
            return 0
        copies = {self.device.copies.find(args[p.argument]) for p in self.plan.inputs if p.kind == "cotangent"}
        copy = copies.pop() if len(copies) == 1 else None
        if copy is not None:
            share = copy.largest * 2.0**-state.cotangent
            if share == 0.0 or 2.0**-SERVES <= share <= 2.0:
                return copy.exponent
        return min(exponent_for(2.0**state.cotangent, peak), LARGEST_COTANGENT)

    def _run(
        self, variant: Variant, state: ScaleState, args: Sequence[Tensor], buffers: dict[str, Tensor], cotangent: int
    ) -> tuple[dict[str, Tensor], list[int]]:
        """One dispatch; returns its output buffers and the exponents that the products carry."""
        lease = self.device.buffers.lease
        for port in self.plan.inputs:
            if port.kind != "cotangent":
                continue
            copy = self.device.copies.find(args[port.argument])
            if copy is not None and copy.exponent == cotangent and copy.buffer.shape == port.shape:
                buffers[port.name] = copy.buffer
                continue
            buffers[port.name] = lease(port.shape)
            peak = store(buffers[port.name], args[port.argument], cotangent) * 2.0**cotangent
            self.device.copies.keep(args[port.argument], Copy(buffers[port.name], cotangent, peak))
        if SCALES in self.program.ports:
            buffers[SCALES] = lease(self.program.ports[SCALES].type.shape)
            buffers[SCALES].copy_(torch.from_numpy(state.factors()))
        outputs = {port.name: lease(port.type.shape) for port in self.program.outputs}
        self.statistics.dispatches[variant.name] += 1
        variant.operation.bind(buffers | outputs)
        variant.operation.execute()
        variant.operation.release_bindings()
        return outputs, [state.product_exponent(p) for p in self.plan.scales.products]

    def _read(
        self,
        outputs: dict[str, Tensor],
        exponents: list[int],
        cotangent: int,
        maxima: np.ndarray,
        held: Mapping[int, Tensor],
    ) -> dict[str, Tensor | Piece]:
        """What the outputs hold, by port; fills in the maxima: the program's own and those found while reading.

        Results at the positions of ``held`` stay where they are.
        """
        if rows := self.plan.scales.maxima_rows:
            maxima[:rows] = outputs[MAXIMA].flatten().numpy()
        found: dict[str, Tensor | Piece] = {}
        for port in self.plan.outputs:
            buffer = found[port.name] = outputs[port.name]
            if port.saved:
                continue
            carried = exponents[port.product] if port.product is not None else 0
            exponent = -carried - (cotangent if port.linear else 0)
            if len(port.results) == 1 and port.results[0] in held:
                largest, squares = measure(buffer)
                found[port.name] = Piece(buffer, exponent, squares * 4.0**exponent)
            else:
                x, largest = load(buffer, exponent)
                found[port.name] = x
                if not self.backward or port.shape in self.cotangent_shapes:  # the next region may take it
                    self.device.copies.keep(x, Copy(buffer, -exponent, largest))
            if port.maximum_row is not None:
                maxima[port.maximum_row] = largest
        return found

    def _count(self, state: ScaleState, attempts: int) -> None:
        if not state.calibrated:
            self.statistics.calibrations += attempts
        elif attempts:
            self.statistics.rescaled += 1
        state.calibrated = True

    def _lower_cotangent(self, state: ScaleState) -> None:
        if not self.backward:
            raise AnewError(f"{self.plan.name}: a value inside this region is {BEYOND}")
        state.cotangent -= 3

    def _results(
        self,
        args: Sequence[Tensor],
        found: dict[str, Tensor | Piece],
        values: np.ndarray,
        held: Mapping[int, Tensor],
    ) -> list[Tensor | None]:
        """The graph's results; what is known of the magnitudes of saved ones stays with their buffers.

        Held gradients are handed over, and autograd is given none.
        """
        results: list[Tensor | None] = [None] * self.plan.result_count
        for port in self.plan.outputs:
            x = found[port.name]
            if isinstance(x, Piece):
                assert self.holding is not None
                self.holding.gradients.add(held[port.results[0]], x)
                continue
            if port.bound:
                self.device.buffers.note(x, port.bound.value(values))
            for position in port.results:
                results[position] = x != 0 if position in self.plan.truths and not port.saved else x
        for position, argument in self.plan.passed:
            results[position] = args[argument]
        return results

    def _nan_results(self, args: Sequence[Tensor]) -> list[Tensor | None]:
        """Non-finite cotangents give non-finite gradients, as in PyTorch; the engine would make them finite."""
        results: list[Tensor | None] = [None] * self.plan.result_count
        for port in self.plan.outputs:
            for position in port.results:
                results[position] = torch.full(port.shape, math.nan)
        return results
