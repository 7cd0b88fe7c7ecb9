"""What the host adds to a region call, compile time and program count by depth, on the null device."""

from __future__ import annotations

from bench import host_overhead
from evidence import record


def main() -> None:
    """Measure and write the record."""
    record.write("host_overhead", host_overhead.measure())
