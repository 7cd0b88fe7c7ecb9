"""How the host's tensors meet the ports of one plan: written to buffers, run, read back.

The boundary contract: tensors outside are fp32 and unscaled. Cotangents are brought to a range of fp16 that suits the
backward program by one power of two, which is divided out of the gradients in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from anew.compiler.custom_ops import MASKED
from anew.device.base import Device, Operation
from anew.device.copies import Copy
from anew.device.transfer import load, measure, store
from anew.errors import AnewError
from anew.frontend.held import Holding, Piece
from anew.frontend.scales import FP16_MAX, ScaleState, exponent_for
from anew.frontend.weight_store import BEYOND, WeightStore, magnitude
from anew.plan import MAXIMA, SCALES, InputPort, OutputPort, Plan

#: A value below minus this is a mask's "minus infinity", not a number to keep.
MASK_MAGNITUDE = 1e30
#: Largest exponent of a cotangent's scale: fp32 holds the factor and its inverse.
LARGEST_COTANGENT = 126
#: How many powers of two a cotangent may be smaller than wanted, if it then need not be copied.
SERVES = 4

#: What an output port holds, for the host: a tensor, or a gradient that stays where it is.
Found = Tensor | Piece


@dataclass(frozen=True)
class Variant:
    """A program that may run for a plan: the ports that it reads and, of baked weights, the exponents by operand."""

    name: str
    inputs: tuple[InputPort, ...]
    operation: Operation
    exponents: dict[int, int] = field(default_factory=dict)


@dataclass
class Uploaded:
    """Arguments in buffers, by port; of weights the exponents and largest magnitudes, by operand."""

    buffers: dict[str, Tensor] = field(default_factory=dict)
    exponents: dict[int, int] = field(default_factory=dict)
    largest: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cotangents:
    """The largest magnitudes of cotangents by port, as given, and the exponent that they are multiplied by."""

    peaks: dict[str, float]
    exponent: int = 0

    @property
    def peak(self) -> float:
        """The largest magnitude of all as given; 0 where there are none."""
        return max(self.peaks.values(), default=0.0)

    @property
    def share(self) -> float:
        """The largest magnitude of all in the program; 1 where there are none, or nothing but zeros."""
        return self.peak * 2.0**self.exponent or 1.0


class Binding:
    """One plan on a device. ``eight_bits``: ports whose weights have eight bits."""

    def __init__(
        self, plan: Plan, device: Device, weights: WeightStore, scaling: bool, eight_bits: frozenset[str]
    ) -> None:
        self.plan = plan
        self.device = device
        self.weights = weights
        self.scaling = scaling
        self.eight_bits = eight_bits
        self.cotangent_ports = [port for port in plan.inputs if port.kind == "cotangent"]
        self.cotangent_shapes = {port.shape for port in self.cotangent_ports}
        self.backward = bool(self.cotangent_shapes)
        #: Of a backward program, which of its results may stay in their buffers.
        self.holding: Holding | None = None

    def over(self, plan: Plan) -> Binding:
        """The same over another plan of the same graph."""
        other = Binding(plan, self.device, self.weights, self.scaling, self.eight_bits)
        other.holding = self.holding
        return other

    def upload(self, variant: Variant, args: Sequence[Tensor], maxima: np.ndarray) -> Uploaded:
        """Bring activations and weights into buffers; largest magnitudes become rows of ``maxima`` where wanted."""
        found = Uploaded()
        for port in variant.inputs:
            x = args[port.argument]
            if port.kind == "weight":
                largest = self._weight(port, x, found)
            elif port.kind == "activation":
                found.buffers[port.name], largest = self._activation(port, x)
            else:
                continue
            if port.maximum_row is not None:
                maxima[port.maximum_row] = largest
        found.exponents |= variant.exponents
        return found

    def _weight(self, port: InputPort, x: Tensor, found: Uploaded) -> float:
        scaled = self.scaling and port.operand is not None
        name = f"{self.plan.name}: weight '{port.name}'"
        uploaded = self.weights.upload(name, x, scaled, not self.backward, port.name in self.eight_bits)
        found.buffers[port.name] = uploaded.buffer
        if port.operand is not None:
            found.exponents[port.operand] = uploaded.exponent
            found.largest[port.operand] = uploaded.largest
        return uploaded.largest

    def _activation(self, port: InputPort, x: Tensor) -> tuple[Tensor, float]:
        """A buffer with the values of ``x``, and their largest magnitude where the plan wants it."""
        pool = self.device.buffers
        if x.dtype == torch.float16 and not x.requires_grad and x.stride() == self.device.buffers.strides(port.shape):
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

    def _finite(self, port: InputPort, x: Tensor) -> Tensor:
        """Masks of -inf or -3.4e38 become finite; anything else beyond fp16 is an error, not a clamp."""
        masked = x < -MASK_MAGNITUDE
        peak = magnitude(x.masked_fill(masked, 0.0))
        if not peak <= FP16_MAX:
            raise AnewError(f"{self.plan.name}: input '{port.name}' {list(port.shape)} reaches {peak:.4g}, {BEYOND}")
        return x.masked_fill(masked, MASKED)

    def cotangent_peaks(self, args: Sequence[Tensor]) -> dict[str, float]:
        """The largest magnitudes of the cotangents, by port."""
        peaks: dict[str, float] = {}
        for port in self.cotangent_ports:
            copy = self.device.copies.find(args[port.argument])
            peaks[port.name] = magnitude(args[port.argument]) if copy is None else copy.largest * 2.0**-copy.exponent
        return peaks

    def cotangents(self, args: Sequence[Tensor], peaks: dict[str, float], wanted: int) -> Cotangents:
        """Choose the cotangents' scale, to reach ``2**wanted``; that of a buffer whose numbers are large enough."""
        if not self.scaling:
            return Cotangents(peaks)
        copies = {self.device.copies.find(args[p.argument]) for p in self.cotangent_ports}
        copy = copies.pop() if len(copies) == 1 else None
        if copy is not None:
            share = copy.largest * 2.0**-wanted
            if share == 0.0 or 2.0**-SERVES <= share <= 2.0:
                return Cotangents(peaks, copy.exponent)
        peak = max(peaks.values(), default=0.0)
        return Cotangents(peaks, min(exponent_for(2.0**wanted, peak), LARGEST_COTANGENT))

    def run(
        self,
        variant: Variant,
        state: ScaleState,
        args: Sequence[Tensor],
        buffers: dict[str, Tensor],
        cotangents: Cotangents,
    ) -> dict[str, Tensor]:
        """One dispatch; returns its output buffers."""
        lease, ports = self.device.buffers.lease, variant.operation.program.ports
        for port in self.cotangent_ports:
            buffers[port.name] = self._cotangent(port, args[port.argument], cotangents.exponent)
        if SCALES in ports:
            buffers[SCALES] = lease(ports[SCALES].type.shape)
            buffers[SCALES].copy_(torch.from_numpy(state.factors()))
        outputs = {port.name: lease(port.type.shape) for port in variant.operation.program.outputs}
        variant.operation.bind(buffers | outputs)
        variant.operation.execute()
        variant.operation.release_bindings()
        return outputs

    def _cotangent(self, port: InputPort, x: Tensor, exponent: int) -> Tensor:
        copy = self.device.copies.find(x)
        if copy is not None and copy.exponent == exponent and copy.buffer.shape == port.shape:
            return copy.buffer
        buffer = self.device.buffers.lease(port.shape)
        self.device.copies.keep(x, Copy(buffer, exponent, store(buffer, x, exponent) * 2.0**exponent))
        return buffer

    def read(
        self,
        outputs: dict[str, Tensor],
        state: ScaleState,
        cotangents: Cotangents,
        maxima: np.ndarray,
        held: Mapping[int, Tensor],
        *,
        later: bool = False,
    ) -> dict[str, Found]:
        """What the outputs hold, by port; fills in the maxima: the program's own and those found while reading.

        Results at the positions of ``held`` stay where they are; ``later``: :meth:`look` is to find their maxima.
        """
        if rows := self.plan.scales.maxima_rows:
            maxima[:rows] = outputs[MAXIMA].flatten().numpy()
        found: dict[str, Found] = {}
        for port in self.plan.outputs:
            buffer = found[port.name] = outputs[port.name]
            if port.saved:
                continue
            exponent = -self._carried(port, state) - (cotangents.exponent if port.linear else 0)
            if len(port.results) == 1 and port.results[0] in held:
                piece = found[port.name] = Piece(buffer, exponent)
                if later:
                    continue
                largest = piece.measure()
            else:
                found[port.name], largest = x, _ = load(buffer, exponent)
                if not self.backward or port.shape in self.cotangent_shapes:  # the next region may take it
                    self.device.copies.keep(x, Copy(buffer, -exponent, largest))
            if port.maximum_row is not None:
                maxima[port.maximum_row] = largest
        return found

    def look(self, found: Mapping[str, Found], maxima: np.ndarray) -> None:
        """Measure the results that stay where they are, and fill in their maxima."""
        for port in self.plan.outputs:
            if isinstance(piece := found[port.name], Piece):
                largest = piece.measure()
                if port.maximum_row is not None:
                    maxima[port.maximum_row] = largest

    def _carried(self, port: OutputPort, state: ScaleState) -> int:
        """The exponent of the scales that a product carries out of the program."""
        return 0 if port.product is None else state.product_exponent(self.plan.scales.products[port.product])

    def reach(self, maxima: np.ndarray, state: ScaleState, cotangents: Cotangents) -> list[float]:
        """The largest magnitudes of results that the host read: scales divided out, for cotangents of magnitude 1."""
        found = []
        for port in self.plan.outputs:
            if port.maximum_row is not None:
                share = cotangents.share if port.linear else 1.0
                found.append(float(maxima[port.maximum_row]) * 2.0 ** -self._carried(port, state) / share)
        return found

    def results(
        self, args: Sequence[Tensor], found: dict[str, Found], values: np.ndarray, held: Mapping[int, Tensor]
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

    def nan_results(self) -> list[Tensor | None]:
        """Non-finite cotangents give non-finite gradients, as in PyTorch; the engine would make them finite."""
        results: list[Tensor | None] = [None] * self.plan.result_count
        for port in self.plan.outputs:
            for position in port.results:
                results[position] = torch.full(port.shape, math.nan)
        return results
