"""What this machine is: as data, for a report and a table."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from anew.device.machine import brand, sysctl
from anew.device.power import power

PACKAGES = ("anew", "torch", "transformers", "numba", "peft")


def describe_machine() -> dict[str, Any]:
    """System, processor, memory and versions; on a Mac also the build, the model and what holds it back."""
    about: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }
    if sys.platform == "darwin":
        about["macos"] = f"{platform.mac_ver()[0]} ({sysctl('kern.osversion')})"
        about["model"] = sysctl("hw.model")
        if (found := power()) is not None:
            about |= {"low_power_mode": found.low_power_mode, "thermal_state": found.thermal_state}
    return about


def _processor() -> str:
    if sys.platform == "darwin":
        return brand()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        return platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
