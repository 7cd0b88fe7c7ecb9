"""What this machine is: its chip by anew's name, and the build of its system."""

from __future__ import annotations

import ctypes
import functools
import platform
import re
import sys

from anew.chips import known_chips

#: The chip that is emulated where there is no engine.
EMULATED_CHIP = "m4"


def reason_for_no_engine() -> str | None:
    """Why this machine has no engine that anew can reach; None on a Mac with Apple silicon."""
    if sys.platform != "darwin":
        return f"this is {platform.system()}, and the engine is in Macs with Apple silicon"
    if platform.machine() != "arm64":
        return "this Mac has an Intel processor, or Python runs under Rosetta; the engine comes with Apple silicon"
    return None


@functools.cache
def sysctl(name: str) -> str:
    """A text that macOS knows by a name, such as ``kern.osversion``; empty off a Mac and where there is none."""
    if sys.platform != "darwin":
        return ""
    libc, text, size = ctypes.CDLL(None), ctypes.create_string_buffer(256), ctypes.c_size_t(256)
    failed = libc.sysctlbyname(name.encode(), text, ctypes.byref(size), None, ctypes.c_size_t(0))
    return "" if failed else text.value.decode()


def brand() -> str:
    """The processor as macOS names it, such as ``Apple M4 Pro``; empty off a Mac."""
    return sysctl("machdep.cpu.brand_string")


def chip_of(brand: str) -> str | None:
    """The chip's name as anew gives it, ``m4`` for all of the M4 family; None for a processor of another maker."""
    found = re.match(r"Apple (M\d+)\b", brand)
    return found[1].lower() if found else None


def default_chip() -> str:
    """The chip of this Mac, the latest with a data file on a Mac later than that, and the emulated one elsewhere."""
    own = chip_of(brand())
    if own is None:
        return EMULATED_CHIP
    return own if own in known_chips() else known_chips()[-1]


def system_build() -> str:
    """The system with its build: an update changes it."""
    found = platform.uname()
    return f"{found.system} {sysctl('kern.osversion')} {found.version}"
