"""What the loss costs on a chip: how its tiles are cut, and whether the backward pass gets their exponentials saved.

A chip whose rates nobody measured gets the fewest runs, and computes again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from anew.chips import Chip
from anew.compiler.gains import Gain, rates_of
from anew.frontend.loss.programs import Shape, lower, mass_again
from anew.frontend.loss.tiling import Cut, Tiling
from anew.projection import Work, from_memory
from anew.projection.count import work_of
from anew.projection.work import FP16_BYTES, matmul

#: Most bytes of exponentials that wait for the backward pass.
MOST_SAVED = 256e6
#: Passes over the logits in both programs, and more of them where columns of two tiles are masked.
PASSES, MASKING = 12, 2


def tiling_for(tokens: int, vocabulary: int, features: int, chip: Chip, columns: int | None = None) -> Tiling:
    """The tiling of a loss with a head of so many features: what the chip takes, at the least cost of a step.

    ``columns`` are those of the tiles that the head's weight is uploaded in, if it is already.
    """
    longest = min(chip.max_axis, chip.max_transpose // features)
    cost = _cost(vocabulary, features, chip)
    return Tiling.plan(
        tokens, vocabulary, longest, lambda cut: math.inf if columns not in (None, cut.columns) else cost(cut)
    )


def _cost(vocabulary: int, features: int, chip: Chip) -> Callable[[Cut], float]:
    rates = rates_of(chip.name)
    if rates is None:
        return lambda cut: cut.runs
    return lambda cut: rates.time(_work(cut, vocabulary, features))


def _work(cut: Cut, vocabulary: int, features: int) -> Work:
    """The work of a step that depends on the cut."""
    product = replace(matmul(cut.rows, features, cut.columns), weight_bytes=0.0, fetched=0.0)
    moved = float(features * (cut.rows + cut.columns))  # read by both programs; the second gives as much
    passes = PASSES + (MASKING if cut.tiles * cut.columns > vocabulary else 0)
    others = Work(dispatches=2, write=moved, elementwise=float(passes * cut.rows * cut.columns))
    return (product * 2 + others + from_memory(3 * FP16_BYTES * moved)) * cut.runs


def gain_of_saving(name: str, shape: Shape, tiling: Tiling, chip: Chip) -> Gain | None:
    """What a tile of the loss ``name`` spares if its exponentials are saved, not computed again; None if nothing."""
    rates, elements = rates_of(chip.name), shape.rows * shape.columns
    if rates is None or tiling.runs * elements * FP16_BYTES > MOST_SAVED:
        return None
    again = work_of(lower(mass_again, name, chip, shape.ports() | {"largest": (shape.rows, 1)}).function)
    seconds = rates.time(again) - rates.time(from_memory(2.0 * FP16_BYTES * elements))
    gain = Gain(name, "exponentials saved for the backward pass, not computed again,", elements, 1e3 * seconds)
    return gain if seconds > 0 else None
