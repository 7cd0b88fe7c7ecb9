"""``make demo`` on a fresh clone: how long everything takes, and what it shows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from evidence import record
from evidence.browser import MISSING, photograph


def shown(output: str) -> list[str]:
    """The lines of the run itself, without what make and pip print before it."""
    lines = output.rstrip().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Training a tokenizer"))
    return lines[start:]


def main() -> None:
    """Clone the commit, run the README's first command, read what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "anew"
        subprocess.run(["git", "clone", "--quiet", record.ROOT, clone], check=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_ENV", "PYTHONPATH"))}
        start = time.monotonic()
        done = subprocess.run(["make", "demo"], cwd=clone, env=environment, capture_output=True, text=True, check=True)
        seconds = time.monotonic() - start
        run = json.loads((clone / "runs" / "demo" / "run.json").read_text())
        shutil.copy(clone / "runs" / "demo" / "loss.png", record.FOLDER / "demo-loss.png")
        if MISSING:
            print(f"the pictures of the report stay as they are: {MISSING}")
        else:
            photograph(clone / "runs" / "demo" / "report.html", record.FOLDER, "demo-report")
    first, last = run["first_val_loss"], run["last_val_loss"]
    record.write(
        "demo",
        {
            "seconds_all": seconds,
            "minutes_all": seconds / 60,
            "seconds_training": run["seconds"]["training"],
            "first_val_loss": first,
            "last_val_loss": last,
            "fall": 1 - last / first,
            "device": run["device"],
            "emulated": run["emulated"],
            "parameters": run["parameters"],
            "programs": run["programs"],
            "dispatches": run["dispatches"],
            "rescaled": run["rescaled"],
            "output": shown(done.stdout),
        },
    )
