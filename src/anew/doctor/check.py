"""``python -m anew.doctor.check ROUTE CHIP``: puts the essential questions to a route, and prints what differs."""

from __future__ import annotations

import sys

from anew.chips import load_chip
from anew.device.base import Device
from anew.device.routes import ROUTES
from anew.doctor.examine import ESSENTIAL, examine


def deviations(device: Device) -> list[str]:
    """What a device answers differently from what was expected, a sentence each; empty when training works."""
    found = examine(device, {}, ESSENTIAL).deviations
    return [f"{finding.probe}: expected {finding.expected}; found {finding.found}" for finding in found]


def main(route: str, chip: str) -> int:
    """Check a route; returns the exit code."""
    found = deviations(ROUTES[route].open(load_chip(chip)))
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
