"""One parameter's step of Adam: gradient in, weight, moments and the engine's fp16 weight out, in one pass."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anew.device.transfer import as_rows, float_of_largest, store
from anew.frontend.held import Piece
from anew.frontend.scales import FP16_MAX, weight_exponent
from anew.frontend.staleness import StaleWarning, mark
from anew.frontend.weight_store import UploadedWeight, WeightStore
from anew.optim.kernels import TASKS, adam, squares

_NO_FLOATS = np.empty((0, 0), np.float32)
_NO_PLACES = np.empty(0, np.int32)
_NO_HALVES = np.empty((0, 0), np.int16)


@dataclass(frozen=True)
class Rule:
    """The numbers of a step that parameters of one group share, as PyTorch's fused kernel computes them.

    ``clip`` is what gradients are multiplied by.
    """

    beta1: float
    beta2: float
    eps: float
    lr: float
    decay: float
    decoupled: bool
    clip: float

    def numbers(self, step: float) -> tuple[np.float32, ...]:
        """The kernel's arguments from ``clip`` to ``coupled`` at a step, counted from 1."""
        correction = 1.0 - self.beta1**step
        root = math.sqrt(1.0 - self.beta2**step)
        shrink = 1.0 - self.lr * self.decay if self.decoupled else 1.0
        coupled = 0.0 if self.decoupled else self.decay
        gaps = (1.0 - self.beta1, self.beta2, 1.0 - self.beta2)
        return tuple(map(np.float32, (self.clip, *gaps, root, self.eps, self.lr / correction, shrink, coupled)))


@dataclass
class Gradient:
    """The gradient of one parameter: what is in ``.grad``, and what is held.

    With ``places``, int32 [rows], rows whose place is not negative have all of theirs there in ``dense``, and only the
    others have that of the pieces, whose squares are those of these rows alone.
    """

    dense: Tensor | None
    pieces: list[Piece]
    places: Tensor | None = None

    def __bool__(self) -> bool:
        """Whether there is one."""
        return self.dense is not None or bool(self.pieces)

    def squares(self, like: Tensor) -> float:
        """The sum of the elements' squares; of one held gradient it was found when the result was read."""
        if len(self.pieces) == 1 and (self.dense is None or self.places is not None):
            return max(self.pieces[0].squares, 0.0) + self._squares_of_rows()  # it may be a rounding below 0
        sums = np.empty(TASKS)
        squares(matrix(like), *self.terms(), sums)
        return float(sums.sum())

    def _squares_of_rows(self) -> float:
        if self.dense is None or self.places is None:
            return 0.0
        return float(self.dense[self.places[self.places >= 0]].double().square_().sum())

    def of_rows(self, rows: Tensor) -> Tensor:
        """That of some rows [n] of a matrix, in float32 [n, columns], added as the kernels add it."""
        terms = [piece.buffer[rows].float().mul_(2.0**piece.exponent) for piece in self.pieces]
        if self.dense is not None and self.places is None:
            terms.insert(0, self.dense[rows])
        total = functools.reduce(torch.add, terms) if terms else torch.zeros(1)
        if self.dense is None or self.places is None:
            return total
        places = self.places[rows]
        total = total.expand(len(rows), self.dense.shape[1]).clone()
        total[places >= 0] = self.dense[places[places >= 0]]
        return total

    def terms(self) -> tuple[Any, ...]:
        """The kernels' arguments from ``dense`` to ``second_factor``."""
        terms: list[Any] = [_NO_FLOATS if self.dense is None else matrix(self.dense.contiguous())]
        terms.append(_NO_PLACES if self.places is None else self.places.numpy())
        for piece in self.pieces:
            terms += [as_rows(piece.buffer), np.float32(2.0**piece.exponent)]
        for _ in range(2 - len(self.pieces)):
            terms += [_NO_HALVES, np.float32(1.0)]
        return tuple(terms)


def matrix(x: Tensor) -> np.ndarray:
    """A contiguous float32 tensor as rows of its last axis."""
    return x.detach().view(-1, x.shape[-1]).numpy()


def update(
    parameter: Tensor,
    state: Mapping[str, Tensor],
    gradient: Gradient,
    numbers: tuple[np.float32, ...],
    store_: WeightStore,
    before: int = 0,
) -> None:
    """Take one step of a parameter, in place; if the engine has its weight in a buffer, that is written too.

    The buffer then counts as up to date. A weight that something else wrote without raising its version is written to
    the buffer anew, with a warning. The first ``before`` rows, which have been stepped, are only written to the buffer:
    state and gradient are those of the other rows.
    """
    entry = store_.rewritable(parameter)
    buffer = None if entry is None else entry[0].buffer
    factor = np.float32(1.0 if entry is None else 2.0 ** entry[0].exponent)
    found = np.empty((TASKS, 3), np.int64)
    arrays = (matrix(parameter.detach()[before:]), matrix(state["exp_avg"]), matrix(state["exp_avg_sq"]))
    halves = _NO_HALVES if buffer is None else as_rows(buffer[before:])
    adam(*arrays, *gradient.terms(), *numbers, halves, factor, found)
    old, new = int(found[:, 1].sum()), int(found[:, 2].sum())
    if entry is None:
        return
    uploaded, scaled = entry
    if uploaded.checksum not in (None, old) and uploaded.mark is not None:
        warnings.warn(_rewritten(parameter), stacklevel=2)
    largest = float_of_largest(np.int32(found[:, 0].max()))
    if before:
        largest = max(largest, store(uploaded.buffer[:before], parameter[:before], uploaded.exponent))
    _refresh(uploaded, parameter, scaled, largest)
    uploaded.checksum = new


def _refresh(uploaded: UploadedWeight, parameter: Tensor, scaled: bool, largest: float) -> None:
    """Note what the buffer holds now, with another exponent if the weight's largest magnitude asks for it."""
    exponent = weight_exponent(largest) if scaled and math.isfinite(largest) else 0
    if not largest * 2.0**exponent <= FP16_MAX:
        uploaded.source, uploaded.mark = (0, 0), None  # the next upload names the weight that fp16 cannot hold
        return
    if exponent != uploaded.exponent:
        store(uploaded.buffer, parameter, exponent)
    uploaded.source = (parameter.data_ptr(), parameter._version)
    uploaded.exponent, uploaded.largest, uploaded.original = exponent, largest, None
    uploaded.mark = mark(parameter)


def _rewritten(parameter: Tensor) -> StaleWarning:
    return StaleWarning(
        f"a weight {list(parameter.shape)} was written through its data, in few places, since the optimizer's last "
        "step; calls since then may have used the old numbers. Write in place, without .data"
    )
