"""Which device a set of options means: the named one, or with ``auto`` the first route to the engine that works here.

A route is used once its self-check has passed on this chip and build of the system (:mod:`anew.frontend.self_check`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anew.chips import Chip, load_chip
from anew.device.base import Device
from anew.device.emulator.engine import EmulatedEngine
from anew.device.machine import brand, chip_of
from anew.device.null import NullDevice
from anew.device.recheck import RecheckedDevice
from anew.device.routes import ROUTES, Route
from anew.errors import AnewError, UserError
from anew.frontend import self_check

if TYPE_CHECKING:
    from anew.frontend.options import Options


def make_device(options: Options) -> Device:
    """Make the device that options name; ``why`` on it says what ``auto`` went by.

    Raises UserError with the reason when a route that is asked for by name is not there or does not pass.
    """
    chip = load_chip(options.chip, dict(options.switches))
    if options.device == "null":
        return NullDevice(chip)
    if options.device == "emulator":
        return EmulatedEngine(chip, numerics=options.numerics)
    device = _first_that_works(chip, options) if options.device == "auto" else _named(options.device, chip)
    return RecheckedDevice(device, options.recheck) if options.recheck and not device.emulated else device


def _named(name: str, chip: Chip) -> Device:
    found = _try(ROUTES[name], chip)
    if isinstance(found, str):
        raise UserError(f"device '{name}' is not available: {found}; device 'emulator' is everywhere")
    return found


def _first_that_works(chip: Chip, options: Options) -> Device:
    """The first route that works, or the emulated engine; ``why`` names what was passed over, each reason once."""
    against: dict[str, list[str]] = {}
    for route in ROUTES.values():
        found = _try(route, chip)
        if not isinstance(found, str):
            found.why = _sentence(against)
            return found
        against.setdefault(found, []).append(route.name)
    device = EmulatedEngine(chip, numerics=options.numerics)
    device.why = _sentence(against)
    return device


def _sentence(against: dict[str, list[str]]) -> str:
    return "; ".join(f"not {' or '.join(names)}: {reason}" for reason, names in against.items())


def _try(route: Route, chip: Chip) -> Device | str:
    """Open a route, or say why not."""
    reason = route.reason_against() or _other_chip(chip)
    if reason is None:
        reason = self_check.reason_against(route.name, chip)
    if reason is not None:
        return reason
    try:
        return route.open(chip)
    except AnewError as error:
        return str(error)


def _other_chip(chip: Chip) -> str | None:
    own = chip_of(brand())
    if own is None or own == chip.name:
        return None
    return f"this Mac has an {own}, and programs for an {chip.name} were asked for"
