"""Operand scales of a device that computes nothing: every magnitude is one of a model at work.

By them the host finds, as it does in training, that most products need no scales; those of LoRA's B, whose weights are
zeros, do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from anew.frontend.scale_store import ScaleStore
from anew.frontend.scales import ScaleState
from anew.plan import Plan

#: The largest magnitude of anything but a weight: in single figures to tens.
TYPICAL = 8.0


class TypicalState(ScaleState):
    """A state that finds every run good, and measures when its store says so."""

    store: TypicalScales

    @property
    def due(self) -> bool:
        """Whether the next call is to measure."""
        return self.plain is None or self.store.measures

    def values(self, maxima: np.ndarray) -> np.ndarray:
        """Typical magnitudes, whatever the run gave."""
        return np.full(len(maxima), TYPICAL)

    def review(self, maxima: np.ndarray) -> str:
        """Leave the exponents as they are."""
        return "good"

    def holds_for(self, share: float) -> bool:
        """Cotangents are as they were."""
        return True

    def within(self, reach: Sequence[float]) -> bool:
        """Results are as they were."""
        return True


class TypicalScales(ScaleStore):
    """Makes such states. ``measures``: whether calls are the ones that measure, or those in between."""

    def __init__(self) -> None:
        super().__init__()
        self.measures = True

    def make(self, plan: Plan, **saved: Any) -> ScaleState:
        """A new state of typical magnitudes."""
        state = TypicalState(plan.scales, **saved)
        state.store = self
        return state
