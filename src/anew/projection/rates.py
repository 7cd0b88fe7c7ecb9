"""What each kind of work costs on a chip: fitted by ``python -m evidence projection`` and kept in ``rates.json``.

The price is additive: a program takes the sum over its amounts of work, each times its rate. That takes no overlap of
copies with the engine for granted, as the measurements behind it had none: one program at a time, each awaited.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from anew.errors import UserError
from anew.projection.scaled import Scaled, read_scaled, scaled_names
from anew.projection.work import Work

#: Amounts whose time is the host's copies; the rest is the engine's. That of an activation or a softmax in a program of
#: its own is the host's where that converts slowly, and next to nothing elsewhere.
COPIES = ("read", "write")
HOST = (*COPIES, "activation", "softmax")
STREAMING = ("weight_bytes", "fetched")


@dataclass(frozen=True)
class Rates:
    """The rates of one chip.

    Attributes:
        chip: its name, as ``m4`` or ``m1-max``.
        seconds: price of one unit of each amount of :class:`Work`, in seconds.
        error: the interval of measured over projected time that holds 80 % of the rows left out of the fit.
        unmeasured: amounts that no measurement on this chip contains; their rate is that of the chip with the same
            engine, or the starting guess.
        scaled: how the rates follow from another chip's, where no measurement is of this one.
    """

    chip: str
    seconds: Work
    error: tuple[float, float]
    unmeasured: tuple[str, ...]
    scaled: Scaled | None = None

    def parts(self, work: Work) -> dict[str, float]:
        """Return the time of each kind of work, in seconds."""
        amounts, prices = dataclasses.asdict(work), dataclasses.asdict(self.seconds)
        return {name: amounts[name] * prices[name] for name in amounts}

    def time(self, work: Work) -> float:
        """Return the projected time of the work, in seconds."""
        return sum(self.parts(work).values())

    def interval(self, work: Work) -> tuple[float, float]:
        """Return the bounds between which four of five measurements are expected, in seconds."""
        low, high = self.error
        return self.time(work) * low, self.time(work) * high

    def extrapolated(self, work: Work) -> tuple[str, ...]:
        """Return the kinds of work in ``work`` whose rate was not measured on this chip."""
        return tuple(name for name in self.unmeasured if getattr(work, name) > 0)


@functools.cache
def _table() -> dict[str, Any]:
    text = resources.files("anew.projection").joinpath("rates.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def chip_names() -> tuple[str, ...]:
    """Return the chips with rates of their own; :func:`scaled_names` has those with another chip's."""
    return tuple(_table())


def read_rates(chip: str) -> Rates:
    """Return the rates of a chip; raises :class:`UserError` for one that neither measurements nor a scaling cover."""
    if chip in scaled_names():
        return _scaled(chip, read_scaled(chip))
    table = _table()
    if chip not in table:
        known = ", ".join((*table, *scaled_names()))
        raise UserError(f"no times were measured on chip '{chip}'; projections exist for {known}")
    row = table[chip]
    low, high = row["error"]
    return Rates(chip, Work(**row["seconds"]), (low, high), tuple(row["unmeasured"]))


def _scaled(chip: str, scaled: Scaled) -> Rates:
    like = read_rates(scaled.like)
    prices = dataclasses.asdict(like.seconds)
    streaming = scaled.engine * scaled.stream
    by_name = dict.fromkeys(HOST, scaled.copies) | dict.fromkeys(STREAMING, streaming)
    factors = {name: by_name.get(name, scaled.engine) for name in prices}
    seconds = Work(**{name: price * factors[name] for name, price in prices.items()})
    return dataclasses.replace(like, chip=chip, seconds=seconds, scaled=scaled)
