"""The routes to the engine, in the order that ``auto`` tries them, and why one is not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anew.device.machine import reason_for_no_engine

if TYPE_CHECKING:  # the command line lists the routes without importing PyTorch
    from anew.chips import Chip
    from anew.device.base import Device


@dataclass(frozen=True)
class Route:
    """A way to the engine.

    Attributes:
        name: as given to ``device=``.
        what: what it goes through, in a few words.
        open: makes the device for a chip; raises DeviceError.
        reason_against: why the route cannot be tried here, found without opening it; None when it can.
    """

    name: str
    what: str
    open: Callable[[Chip], Device]
    reason_against: Callable[[], str | None] = reason_for_no_engine


def _open_e5rt(chip: Chip) -> Device:
    from anew.device.e5rt.engine import E5rtEngine  # its library is looked for when it is wanted

    return E5rtEngine(chip)


def _open_ane(chip: Chip) -> Device:
    from anew.device.ane.engine import AneEngine

    return AneEngine(chip)


ROUTES = {
    route.name: route
    for route in (
        Route("e5rt", "the C functions of Espresso.framework", _open_e5rt),
        Route("ane", "the classes of AppleNeuralEngine.framework", _open_ane),
    )
}
