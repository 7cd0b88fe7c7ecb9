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
def brand() -> str:
    """The processor as the system names it, such as ``Apple M4 Pro``; empty off a Mac."""
    if sys.platform != "darwin":
        return ""
    libc, name, size = ctypes.CDLL(None), ctypes.create_string_buffer(256), ctypes.c_size_t(256)
    failed = libc.sysctlbyname(b"machdep.cpu.brand_string", name, ctypes.byref(size), None, ctypes.c_size_t(0))
    return "" if failed else name.value.decode()


def chip_of(brand: str) -> str | None:
    """The chip's name in anew (``m4`` for all of the M4 family); None when there is no data file for it."""
    found = re.match(r"Apple (M\d+)\b", brand)
    name = found[1].lower() if found else None
    return name if name in known_chips() else None


def default_chip() -> str:
    """The chip of this Mac, or the one that is emulated by default."""
    return chip_of(brand()) or EMULATED_CHIP


def system_build() -> str:
    """The system and its build, such as ``Darwin 25.5.0 Darwin Kernel Version ...``: updates change it."""
    found = platform.uname()
    return f"{found.system} {found.release} {found.version}"
