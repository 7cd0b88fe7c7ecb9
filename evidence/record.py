"""One record: what was measured, by which command, on which commit and machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "evidence"


def write(name: str, figures: dict[str, Any]) -> Path:
    """Write ``docs/evidence/NAME.json`` (to a temporary file, then renamed) and print its figures."""
    record = {
        "command": f"python -m evidence {name}",
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--", "src", "evidence")),
        "machine": machine(),
        "figures": figures,
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.rename(path)
    print(json.dumps(figures, indent=1))
    return path


def write_table(page: str, name: str, rows: list[list[str]]) -> None:
    """Replace the table between ``<!-- table:NAME -->`` and ``<!-- end -->`` in a page of docs/ by these rows."""
    path = FOLDER.parent / page
    start, end = f"<!-- table:{name} -->\n", "<!-- end -->"
    before, _, rest = path.read_text().partition(start)
    _, _, after = rest.partition(end)
    lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    partial = path.with_suffix(".partial")
    partial.write_text(before + start + lines + end + after)
    partial.rename(path)


def read(name: str) -> dict[str, Any]:
    """Return the figures of a record."""
    figures: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())["figures"]
    return figures


def machine() -> dict[str, Any]:
    """What a reader needs to judge a figure: processor, cores, system, versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or ("unknown" if words[0] == "rev-parse" else "")
