"""What a chip's machine delivers besides its rates: memory, peak, power; from ``machines.toml``, with sources."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from importlib import resources

from anew.errors import UserError
from anew.projection.scaled import read_scaled, scaled_names


@dataclass(frozen=True)
class Machine:
    """Facts of one chip.

    Attributes:
        memory_gb_s: stated bandwidth of the host's memory, in 1e9 bytes a second; memory_source: of what machine.
        copy_ms: milliseconds of a copy of 8192 x 4096 fp32 numbers by the CPU.
        peak_tflops: the most that fp16 convolutions were measured to reach; peak_source: which ones, by whom.
        engine_peak_tflops: the most that any chip with the same engine was measured to reach; products are projected
            no faster. engine_peak_source: which one.
        rated_tops: as advertised, in int8 from M4 on.
        engine_watts: of the engine's rail in its busiest measured row.
        host_watts: of the rest of the package while the host copies.
    """

    memory_gb_s: float
    memory_source: str
    copy_ms: float
    peak_tflops: float
    peak_source: str
    engine_peak_tflops: float
    engine_peak_source: str
    rated_tops: float
    engine_watts: float
    host_watts: float


def read_machine(chip: str) -> Machine:
    """Return the facts of a chip; raises :class:`UserError` for a chip without any."""
    table = tomllib.loads(resources.files("anew.projection").joinpath("machines.toml").read_text(encoding="utf-8"))
    if chip in scaled_names():
        scaled = read_scaled(chip)
        like = Machine(**table[scaled.like])
        source = f"Apple {chip.replace('-', ' ').title()}, technical specifications"
        return dataclasses.replace(
            like, memory_gb_s=scaled.memory_gb_s, memory_source=source, copy_ms=like.copy_ms * scaled.copies
        )
    if chip not in table:
        known = ", ".join((*table, *scaled_names()))
        raise UserError(f"nothing is known of the machine of chip '{chip}'; known are {known}")
    return Machine(**table[chip])
