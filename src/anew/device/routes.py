"""The routes to an engine, in the order that ``auto`` tries them, and why one is not there.

A route is one entry of :data:`ROUTES`: it says whether this machine has it and opens it as a device.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass

from anew.chips import Chip
from anew.device.base import Device

#: Why a route is not there, as part of a sentence; None when it is.
Reason = str | None


@dataclass(frozen=True)
class Route:
    """A way to the engine.

    Attributes:
        name: as given to ``device=``.
        what: what it goes through, in a few words.
        available: says why the route cannot be tried here, cheaply and without opening it; None when it can.
        open: makes the device for a chip; raises DeviceError.
    """

    name: str
    what: str
    available: Callable[[], Reason]
    open: Callable[[Chip], Device]


def no_mac() -> Reason:
    """Why this machine has no engine that anew can reach; None on a Mac with Apple silicon."""
    if sys.platform != "darwin":
        return f"this is {platform.system()}, the engine is in Macs with Apple silicon"
    if platform.machine() != "arm64":
        return "this Mac has an Intel processor, or Python runs under Rosetta; the engine comes with Apple silicon"
    return None


def _open_e5rt(chip: Chip) -> Device:
    from anew.device.e5rt.engine import E5rtEngine

    return E5rtEngine(chip)


ROUTES = (Route("e5rt", "the C functions of Espresso.framework", no_mac, _open_e5rt),)
