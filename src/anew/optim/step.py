"""The step of one matrix while it waits to be taken, share by share; some rows can be had ahead of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anew.frontend.weight_store import WeightStore
from anew.optim.shares import Share


class Step:
    """A step of ``parameter``: what is called, or each of its parts in order, takes it once.

    ``numbers`` are those of :class:`anew.optim.update.Rule`.
    """

    def __init__(
        self,
        parameter: Tensor,
        shares: Sequence[Share],
        state: Mapping[str, Tensor],
        numbers: tuple[np.float32, ...],
        store: WeightStore,
    ) -> None:
        self.parameter = parameter
        self.parts = [PartOfStep(parameter, share, state, numbers, store) for share in shares]

    def __call__(self) -> None:
        """Take it."""
        for part in self.parts:
            part()

    def ahead(self, ids: Tensor) -> Tensor:
        """Rows of the parameter by number [n], as the step leaves them, [n, columns]; any thread may ask."""
        rows = torch.empty(len(ids), self.parameter.shape[1])
        for part in self.parts:
            own = (ids >= part.rows.start) & (ids < part.rows.stop)
            if own.any():
                rows[own] = part.ahead(ids[own])
        return rows


class PartOfStep:
    """One share of a step; what it has read goes back to the pool once it is taken."""

    def __init__(self, parameter: Tensor, share: Share, *arguments: Any) -> None:
        self.parameter = parameter
        self.rows = range(*share.rows.indices(len(parameter)))
        self.weight = share.weight
        self._share: Share | None = share
        self._arguments = arguments
        self._lock = Lock()

    def __call__(self) -> None:
        """Take it, once."""
        with self._lock:
            share, self._share = self._share, None
            if share is not None:
                share.step(*self._arguments)

    def ahead(self, ids: Tensor) -> Tensor:
        """Its rows of these numbers as it leaves them, or has left them."""
        with self._lock:
            if self._share is None:
                return self.parameter.detach()[ids]
            return self._share.ahead(ids - self.rows.start, *self._arguments)
