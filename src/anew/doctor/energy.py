"""A probe of the energy counters: which rails there are, and whether each follows a known load."""

from __future__ import annotations

import time
from collections.abc import Iterator

from anew.device.base import Device
from anew.doctor.finding import Finding
from anew.doctor.timing import product
from anew.energy import RAILS, Energy, find_source, measure

#: Of rest, and then of matmuls without a pause; counters move in steps.
SECONDS = 1.0


def energy(device: Device) -> Iterator[Finding]:
    """Watts of each rail at rest and under load.

    A rail that is absent, reads nothing under the load, or, where the load is its own, no more than at rest, is
    unavailable. The load is the engine's own, or the processor's where the engine is emulated.
    """
    source = find_source()
    if isinstance(source, str):
        for rail in RAILS:
            yield Finding(f"energy/{rail}", "", f"unavailable: {source}", "measured", {"watts": None})
        return
    with measure() as rest:
        time.sleep(SECONDS)
    with product().loaded(device) as (operation, _):
        operation.execute()  # a first run prepares what no later one does
        with measure() as load:
            end = time.perf_counter() + SECONDS
            while time.perf_counter() < end:
                operation.execute()
    loaded = "cpu" if device.emulated else "ane"
    for rail in RAILS:
        yield _rail(rail, rest, load, works=rail == loaded)


def _rail(rail: str, rest: Energy, load: Energy, *, works: bool) -> Finding:
    before, during = rest.watts[rail], load.watts[rail]
    raw = {"rest_watts": before, "watts": during, "source": load.source}
    if during is None:
        found = f"unavailable: {load.unavailable[rail]}"
    elif works and during <= (before or 0.0):
        found = f"unavailable: its counter does not follow the load, {before:.2f} W at rest and {during:.2f} W under it"
        raw["watts"] = None
    else:
        found = f"{during:.2f} W under load, {'unavailable' if before is None else f'{before:.2f} W'} at rest"
    return Finding(f"energy/{rail}", "", found, "measured", raw)
