"""Which device a set of options means: the named one, or with ``auto`` the first route to the engine that works here.

A route is used once its self-check has passed on this chip and build of the system (:mod:`anew.frontend.self_check`).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from anew.chips import Chip, known_chips, load_chip
from anew.device.base import Device
from anew.device.emulator.engine import EmulatedEngine
from anew.device.machine import brand, chip_of
from anew.device.null import NullDevice
from anew.device.recheck import RecheckedDevice
from anew.device.routes import ROUTES, Route
from anew.device.worker.client import WorkerDevice
from anew.errors import AnewError, UserError
from anew.frontend import self_check

if TYPE_CHECKING:
    from anew.frontend.options import Options

Switches = tuple[tuple[str, str], ...]


def make_device(options: Options) -> Device:
    """Make the device that options name; ``why`` on it says what ``auto`` passed over.

    Raises UserError with the reason when a route that is asked for by name is not there or does not pass.
    """
    if options.device in ("null", "emulator"):
        return _open(options.device, options)
    device = _first_that_works(options) if options.device == "auto" else _named(options)
    return RecheckedDevice(device, options.recheck) if options.recheck and not device.emulated else device


def open_device(name: str, chip: str, switches: Switches, numerics: str) -> Device:
    """Open a device by its name, in this process; raises DeviceError."""
    found = load_chip(chip, dict(switches))
    if name == "null":
        return NullDevice(found)
    return EmulatedEngine(found, numerics=numerics) if name == "emulator" else ROUTES[name].open(found)


def _open(name: str, options: Options) -> Device:
    """Open a device, in a process of its own when the options say so."""
    opener = partial(open_device, name, options.chip, tuple(dict(options.switches).items()), options.numerics)
    return WorkerDevice(load_chip(options.chip, dict(options.switches)), opener) if options.worker else opener()


def _named(options: Options) -> Device:
    found = _try(ROUTES[options.device], options)
    if isinstance(found, str):
        raise UserError(f"device '{options.device}' is not available: {found}; device 'emulator' is everywhere")
    return found


def _first_that_works(options: Options) -> Device:
    """The first route that works, or the emulated engine; ``why`` names what was passed over, each reason once."""
    against: dict[str, list[str]] = {}
    for route in ROUTES.values():
        found = _try(route, options)
        if not isinstance(found, str):
            break
        against.setdefault(found, []).append(route.name)
    device = found if isinstance(found, Device) else _open("emulator", options)
    device.why = "; ".join(f"not {' or '.join(names)}: {reason}" for reason, names in against.items())
    return device


def _try(route: Route, options: Options) -> Device | str:
    """Open a route, or say why not."""
    chip = load_chip(options.chip, dict(options.switches))
    reason = route.reason_against() or _other_chip(chip) or self_check.reason_against(route.name, chip)
    if reason is not None:
        return reason
    try:
        return _open(route.name, options)
    except AnewError as error:
        return str(error)


def _other_chip(chip: Chip) -> str | None:
    own = chip_of(brand())
    if own in (None, chip.name) or own not in known_chips():
        return None
    return f"this Mac has an {own}, and programs for an {chip.name} were asked for"
