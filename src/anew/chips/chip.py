"""A chip: the rows of its data file, as typed attributes."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from anew.errors import UserError


@dataclass(frozen=True)
class Chip:
    """What one engine generation can do.

    Attributes:
        name: as given to ``--chip``.
        max_axis: longest axis of a tensor, in elements.
        max_rank: largest rank of a tensor.
        max_matmul_rank: largest rank of an operand of matmul or transpose.
        row_bytes: rows (the last axis) start at multiples of this in a buffer.
        loaded_programs: programs a process may have loaded at once.
        convolution: ``direct`` or ``winograd-f23-width``, the form of 3x3 convolutions of stride 1.
    """

    name: str
    max_axis: int
    max_rank: int
    max_matmul_rank: int
    row_bytes: int
    loaded_programs: int
    convolution: str


def known_chips() -> list[str]:
    """Names of the chips with a data file."""
    return sorted(f.name[:-5] for f in resources.files(__package__).iterdir() if f.name.endswith(".toml"))


@functools.cache
def load_chip(name: str) -> Chip:
    """Return the chip of that name; raises UserError naming the known ones when there is none."""
    if name not in known_chips():
        raise UserError(f"unknown chip '{name}'; known: {', '.join(known_chips())}")
    sections: dict[str, Any] = tomllib.loads(resources.files(__package__).joinpath(f"{name}.toml").read_text())
    rows = {key: row["value"] for section in sections.values() for key, row in section.items()}
    return Chip(name, **rows)
