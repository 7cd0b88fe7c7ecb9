"""What a Mac's power does to a run: it must not fall asleep meanwhile, and it may hold its engine back.

Sleep is prevented by the system's own ``caffeinate``, which watches this process and ends with it, however it ends.
Low-power mode and heat are asked of Foundation's NSProcessInfo.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from anew.device.base import DeviceError
from anew.device.foundation import Foundation
from anew.device.framework import FrameworkWarning
from anew.device.objc import FRAMEWORKS, Runtime

CAFFEINATE = "/usr/bin/caffeinate"
METHODS = {
    "+[NSProcessInfo processInfo]": "@16@0:8",
    "-[NSProcessInfo isLowPowerModeEnabled]": "B16@0:8",
    "-[NSProcessInfo thermalState]": "q16@0:8",
}
#: By the number that NSProcessInfo gives (Apple's documentation of NSProcessInfoThermalState).
THERMAL_STATES = ("nominal", "fair", "serious", "critical")


@dataclass(frozen=True)
class Power:
    """What holds the machine back.

    Attributes:
        low_power_mode: whether the user, or a low battery, has turned it on.
        thermal_state: of :data:`THERMAL_STATES`; from ``serious`` on the system slows down.
    """

    low_power_mode: bool
    thermal_state: str

    def __str__(self) -> str:
        """A sentence on what slows this machine down; empty when nothing does."""
        found = ["low-power mode is on"] if self.low_power_mode else []
        if self.thermal_state not in THERMAL_STATES[:2]:
            found.append(f"its thermal state is {self.thermal_state}")
        return f"this Mac is slower than it could be: {' and '.join(found)}" if found else ""


def power(runtime: Runtime | None = None) -> Power | None:
    """Ask what holds this machine back; None off a Mac, and where the system does not say."""
    if runtime is None and sys.platform != "darwin":
        return None
    try:
        runtime = runtime or Runtime([path for path in FRAMEWORKS if "Neural" not in path])
        information, low_power, thermal = runtime.methods(METHODS).values()
        with Foundation(runtime).pool():
            found = information()
            if not found:
                return None
            state = thermal(found)
            name = THERMAL_STATES[state] if 0 <= state < len(THERMAL_STATES) else f"unknown ({state})"
            return Power(low_power(found), name)
    except DeviceError as error:
        warnings.warn(f"{error}; whether low-power mode is on is not known", FrameworkWarning, stacklevel=2)
        return None


@contextmanager
def kept_awake() -> Iterator[None]:
    """Keep a Mac from falling asleep for want of a user, until the block ends or the process dies."""
    if sys.platform != "darwin":
        yield
        return
    try:
        silent = subprocess.DEVNULL
        command = [CAFFEINATE, "-i", "-w", str(os.getpid())]
        guard = subprocess.Popen(command, stdin=silent, stdout=silent, stderr=silent)
    except OSError as error:
        warnings.warn(f"{CAFFEINATE}: {error.strerror}; this Mac may fall asleep during the run", stacklevel=3)
        yield
        return
    try:
        yield
    finally:
        guard.terminate()
        guard.wait()
