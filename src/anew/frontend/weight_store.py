"""Weights as uploaded: in fp16 buffers of the device, converted again when they changed."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from anew.compiler.bake import as_quantized
from anew.device.base import Device
from anew.device.transfer import store
from anew.errors import AnewError
from anew.frontend.instances import ByTensor
from anew.frontend.scales import FP16_MAX, weight_exponent
from anew.frontend.staleness import Mark, Original, late, mark

#: Ends sentences about numbers that are too large.
BEYOND = f"beyond fp16's {FP16_MAX:.0f}; the engine computes in fp16 only"


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

    def buffers(self, weight: Tensor) -> list[Tensor]:
        """The buffers that a weight is in, one for each form."""
        return [known.buffer for known in (self._uploaded.find(weight) or {}).values()]

    def forget(self, weight: Tensor) -> None:
        """Give a weight's buffers back."""
        self._uploaded.set(weight, {})


def magnitude(x: Tensor) -> float:
    """The largest magnitude of a tensor; NaN or infinite when one of its elements is."""
    low, high = torch.aminmax(x.detach())
    return max(-float(low), float(high)) if not math.isnan(float(low)) else math.nan
