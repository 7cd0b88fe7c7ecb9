"""What a chip's machine delivers besides its rates: memory, peak, power; from ``machines.toml``, with sources."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources

from anew.errors import UserError


@dataclass(frozen=True)
class Machine:
    """Facts of one chip.

    Attributes:
        memory_gb_s: stated bandwidth of the host's memory, in 1e9 bytes a second; memory_source: of what machine.
        peak_tflops: the most that fp16 convolutions were measured to reach; peak_source: which ones, by whom.
        rated_tops: as advertised, in int8 from M4 on.
        engine_watts: of the engine's rail in its busiest measured row.
        host_watts: of the rest of the package while the host copies.
    """

    memory_gb_s: float
    memory_source: str
    peak_tflops: float
    peak_source: str
    rated_tops: float
    engine_watts: float
    host_watts: float


def read_machine(chip: str) -> Machine:
    """Return the facts of a chip; raises :class:`UserError` for a chip without any."""
    table = tomllib.loads(resources.files("anew.projection").joinpath("machines.toml").read_text(encoding="utf-8"))
    if chip not in table:
        raise UserError(f"nothing is known of the machine of chip '{chip}'; known are {', '.join(table)}")
    return Machine(**table[chip])
