"""Chips without rows to fit: whose rates they have, and by what those are scaled (``scaled.toml``)."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Scaled:
    """How the rates of a chip follow from those of another.

    Attributes:
        like: the chip with rates. memory_gb_s: stated bandwidth of this one's memory, in 1e9 bytes a second.
        engine, stream, copies: factors on the times of the engine, of its streaming besides, and of the host's copies;
            and what each was taken from.
    """

    like: str
    memory_gb_s: float
    engine: float = 1.0
    engine_source: str = "the same engine at the same clock"
    stream: float = 1.0
    stream_source: str = "nothing was published"
    copies: float = 1.0
    copies_source: str = "nothing was published"


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    return tomllib.loads(resources.files("anew.projection").joinpath("scaled.toml").read_text(encoding="utf-8"))


def scaled_names() -> tuple[str, ...]:
    """Return the chips whose rates are another's, scaled."""
    return tuple(_table())


def read_scaled(chip: str) -> Scaled:
    """Return how a chip of :func:`scaled_names` is scaled."""
    return Scaled(**_table()[chip])
