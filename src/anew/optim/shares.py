"""What one pass of the optimizer steps: a parameter as a whole, or the rows of one tile of a head's table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from anew.frontend.held import MOST, HeldGradients
from anew.frontend.table_gradient import Part
from anew.frontend.weight_store import WeightStore
from anew.optim.update import Gradient, update

#: Elements below which PyTorch's kernel, which takes many parameters in one call, is as fast.
SMALLEST = 1 << 15
#: Adam's two, as PyTorch names them.
MOMENTS = "exp_avg", "exp_avg_sq"
#: Columns below which rows are too short for the kernels to be fast.
NARROWEST = 32


def large(shape: Sequence[int]) -> bool:
    """Whether a parameter of that shape is stepped by the kernels here."""
    return len(shape) >= 2 and math.prod(shape) >= SMALLEST and shape[-1] >= NARROWEST


def writes_head(shape: Sequence[int]) -> bool:
    """Whether the fp16 tiles of a head of that shape are written with its step."""
    return large(shape)


def holds_head(shape: Sequence[int], chunks: int) -> bool:
    """Whether the gradient of a head of that shape stays in fp16, a term for each of so many chunks of tokens."""
    return writes_head(shape) and chunks <= MOST


@dataclass
class Share:
    """Rows of a parameter and their gradient.

    Attributes:
        weight: the parameter or rows of it, as uploaded: the first ``before`` of them another share steps.
        rows: its own, as the parameter and the moments have them.
    """

    weight: Tensor
    rows: slice
    gradient: Gradient
    before: int = 0

    def squares(self) -> float:
        """The sum of the squares of the gradient's elements."""
        return self.gradient.squares(self.weight[self.before :])

    def step(self, state: Mapping[str, Tensor], numbers: tuple[np.float32, ...], store: WeightStore) -> None:
        """Take its step; ``state`` is the parameter's."""
        own = {name: state[name][self.rows] for name in MOMENTS}
        update(self.weight, own, self.gradient, numbers, store, self.before)

    def ahead(
        self, rows: Tensor, state: Mapping[str, Tensor], numbers: tuple[np.float32, ...], store: WeightStore
    ) -> Tensor:
        """Some of its rows, by their place among them, as its step will leave them; nothing is changed."""
        weight = self.weight.detach()[self.before :][rows]
        own = {name: state[name][self.rows][rows] for name in MOMENTS}
        update(weight, own, Gradient(self.gradient.of_rows(rows), []), numbers, store)
        return weight


def shares(parameter: Tensor, held: HeldGradients) -> list[Share]:
    """The shares of a parameter whose gradient is in ``.grad`` or held, in order; none if it has no gradient."""
    held.join(parameter)
    table = held.table(parameter)
    if table is not None:
        found = [(part, Gradient(table.rows, part.own(), table.places[part.rows])) for part in table.parts]
        return [_share(parameter, part, gradient) for part, gradient in found]
    gradient = Gradient(parameter.grad, held.of(parameter))
    tiles = held.tiles.find(parameter)
    if tiles and gradient.dense is not None and not gradient.pieces:
        return [_share(parameter, part, Gradient(gradient.dense[part.rows], [])) for part in tiles]
    return [Share(parameter, slice(None), gradient)] if gradient else []


def _share(parameter: Tensor, part: Part, gradient: Gradient) -> Share:
    rows = parameter.detach()[part.start : part.rows.stop]
    weight = part.weight if part.weight.data_ptr() == rows.data_ptr() else rows  # it may have other memory since
    return Share(weight, part.rows, gradient, part.overlap)
