"""Energy of a piece of work, by rail: engine, processor, GPU, memory.

On a Mac ``zeus-apple-silicon`` reads the counters of IOReport, elsewhere ``zeus`` those of the machine, where installed
(``pip install anew[energy]``). Counters are the machine's, not the process's, count whole millijoules, and on Apple
silicon are believed to be estimates of a model rather than sensors (zeus's documentation). A rail that is absent or
whose counter stands still (the engine's does under load on macOS 27 with an M5: mactop issues 72 and 76) is
*unavailable*: None, never 0. No Mac was at hand: tested on stand-ins with the libraries' interface.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

#: Engine, processor, GPU, memory.
RAILS = ("ane", "cpu", "gpu", "dram")
NOT_INSTALLED = "neither zeus-apple-silicon nor zeus is installed: pip install anew[energy]"
_count = itertools.count()


@dataclass
class Energy:
    """What a measured block took; whole once the block has ended.

    Attributes:
        seconds: the block's duration.
        source: the library that read the counters; empty when none could.
        joules: energy of each rail of :data:`RAILS`; None where it is unavailable.
        unavailable: why, by rail.
    """

    seconds: float = 0.0
    source: str = ""
    joules: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(RAILS))
    unavailable: dict[str, str] = field(default_factory=dict)

    @property
    def watts(self) -> dict[str, float | None]:
        """Mean power of each rail; None where it is unavailable."""
        known = self.seconds > 0
        return {rail: joules / self.seconds if joules and known else None for rail, joules in self.joules.items()}

    @property
    def total(self) -> float | None:
        """Joules of all rails that were read; None when there was none."""
        found = [joules for joules in self.joules.values() if joules is not None]
        return sum(found) if found else None

    def __str__(self) -> str:
        parts = (f"{rail} {f'{w:.2f} W' if w is not None else 'unavailable'}" for rail, w in self.watts.items())
        return ", ".join(parts) + (f" ({self.source})" if self.source else "")


@dataclass(frozen=True)
class Source:
    """A library that reads counters.

    Attributes:
        name: as users install it. monitor: with ``begin_window(label)`` and ``end_window(label)``.
        read: joules by rail from what ``end_window`` gives; None where there is no such counter.
    """

    name: str
    monitor: Any
    read: Callable[[Any], Mapping[str, float | None]]


def _read_apple(metrics: Any) -> dict[str, float | None]:
    """Of an AppleEnergyMetrics: millijoules, None where the chip has no such counter."""
    found = {"ane": metrics.ane_mj, "cpu": metrics.cpu_total_mj, "gpu": metrics.gpu_mj, "dram": metrics.dram_mj}
    return {rail: None if mj is None else mj / 1e3 for rail, mj in found.items()}


def _read_zeus(measurement: Any) -> dict[str, float | None]:
    """Of a zeus Measurement: joules by index of the processor, the GPU and the memory; Apple's own where it has any."""
    if getattr(measurement, "soc_energy", None) is not None:
        return _read_apple(measurement.soc_energy)
    found = {"cpu": measurement.cpu_energy, "gpu": measurement.gpu_energy, "dram": measurement.dram_energy}
    return {rail: sum(by.values()) if by else None for rail, by in found.items()}


_SOURCES: tuple[tuple[str, str, str, Callable[[Any], Mapping[str, float | None]]], ...] = (
    ("zeus-apple-silicon", "zeus_apple_silicon", "AppleEnergyMonitor", _read_apple),
    ("zeus", "zeus.monitor", "ZeusMonitor", _read_zeus),
)


@functools.cache
def find_source() -> Source | str:
    """The first library that is installed and can read counters here, or why there is none."""
    reasons = []
    for name, module, monitor, read in _SOURCES:
        try:
            return Source(name, getattr(import_module(module), monitor)(), read)
        except ImportError:
            continue
        except Exception as error:  # each library raises its own where there are no counters
            reasons.append(f"{name}: {error}")
    return "; ".join(reasons) or NOT_INSTALLED


@contextmanager
def measure() -> Iterator[Energy]:
    """Measure a block; gives an :class:`Energy` to read after it. Blocks may nest.

    ``with anew.measure() as energy: train()``, then ``energy.watts["ane"]``. Blocks of less than a second say little:
    counters move in steps. It never raises for want of a counter: :attr:`Energy.unavailable` has the reasons.
    """
    source, energy, label = find_source(), Energy(), f"anew-{next(_count)}"
    reason = source if isinstance(source, str) else _attempt(source.monitor.begin_window, label)[1]
    started = time.perf_counter()
    try:
        yield energy
    finally:
        energy.seconds = time.perf_counter() - started
        found = None
        if isinstance(source, Source) and not reason:
            found, reason = _attempt(source.monitor.end_window, label)
        if isinstance(source, Source) and found is not None:
            energy.source = source.name
            _fill(energy, source.read(found))
        else:
            energy.unavailable = dict.fromkeys(RAILS, reason)


def _attempt(call: Callable[[str], Any], label: str) -> tuple[Any, str]:
    """What a monitor gives, and why it gave nothing: an energy counter must not stop the work that it counts."""
    try:
        return call(label), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _fill(energy: Energy, found: Mapping[str, float | None]) -> None:
    for rail in RAILS:
        joules = found.get(rail)
        if joules:
            energy.joules[rail] = joules
        else:
            energy.unavailable[rail] = "its counter stood still" if joules == 0 else "this machine has no such counter"
