"""The self-check of a route before its first use: port names, row strides, steps of training.

These are the doctor's essential questions (:mod:`anew.doctor.check`), put in a process of their own, so that a
framework that aborts or hangs costs no more than the check. That it passed is remembered for the chip, the build of the
system, the route and the version of anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from anew.chips import Chip
from anew.device.machine import system_build

#: Seconds that a check may take, imports included; what it does on the engine takes a few.
LIMIT_SECONDS = 120


def reason_against(route: str, chip: Chip) -> str | None:
    """Why a route should not be used, None when its self-check passes or has passed before on this system."""
    key = f"{route} {chip.name} {version('anew')} {system_build()}"
    if key in _passed():
        return None
    reason = _check_apart(route, chip.name)
    if reason is None:
        _remember(key)
    return reason


def _check_apart(route: str, chip: str) -> str | None:
    command = [sys.executable, "-m", "anew.doctor.check", route, chip]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"its self-check did not end within {LIMIT_SECONDS} s"
    if done.returncode == 0:
        return None
    said = (done.stdout.strip() or done.stderr.strip()).splitlines()
    ended = f"ended by signal {-done.returncode}" if done.returncode < 0 else "failed"
    return f"its self-check {ended}" + (f": {said[-1]}" if said else "")


def _cache_file() -> Path:
    system = "~/Library/Caches" if sys.platform == "darwin" else os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(system).expanduser() / "anew" / "self_checks.json"


def _passed() -> list[str]:
    try:
        found = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [key for key in found if isinstance(key, str)] if isinstance(found, list) else []


def _remember(key: str) -> None:
    file = _cache_file()
    partial = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps([*_passed(), key], indent=1), encoding="utf-8")
        partial.replace(file)
    except OSError:
        pass  # the check runs again next time
