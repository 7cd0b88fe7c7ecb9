"""What a real engine said of the disputed facts: the switches in a report of ``anew doctor --probe``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anew.errors import UserError


def switches_from_report(path: str | Path, chip: str) -> dict[str, str]:
    """Return the option of each switch that a device decided, to be given to :func:`anew.compile` as ``switches``.

    Raises UserError for a file that is no report, and for a report of another chip or of an emulated engine.
    """
    device, findings = _read(Path(path))
    if device.get("emulated", True):
        raise UserError(f"{path} is the report of an emulated engine, which knows no more than the data files")
    if device.get("chip") != chip:
        raise UserError(f"{path} is the report of chip {device.get('chip')}, not of {chip}")
    raws = [finding["raw"] for finding in findings]
    return {raw["switch"]: raw["option"] for raw in raws if "switch" in raw}


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return report["device"], report["findings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no report of anew doctor --probe: {error}") from error
