"""Many steps of a small model with many checkpoints: resident memory, open files and loaded programs do not grow."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from anew.frontend.options import Options
from anew.frontend.session import session_for
from anew.train.config import resolve
from anew.train.display import PlainDisplay
from anew.train.metrics import Record
from anew.train.run import run
from evidence import record
from evidence.kills import MODEL

STEPS = 500
DEVICE = {"device": "emulator", "chip": "m4", "numerics": "fast"}


class Watch(PlainDisplay):
    """Prints nothing, and samples the process after each step (Linux)."""

    def __init__(self) -> None:
        super().__init__()
        self.megabytes: list[float] = []
        self.files: list[int] = []
        self.programs: list[int] = []

    def say(self, text: str = "") -> None:
        """Say nothing."""

    def stepped(self, record: Record) -> None:
        """Take a sample."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.megabytes.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
        self.files.append(len(os.listdir("/proc/self/fd")))
        self.programs.append(session_for(Options(**DEVICE)).device.statistics.programs)


def soak(folder: Path, steps: int) -> dict[str, Any]:
    """Train; returns figures of the second tenth of the steps, after the warm-up, and of the last tenth."""
    (folder / "small.json").write_text(json.dumps(MODEL))
    (folder / "text.txt").write_text((record.ROOT / "data" / "austen.txt").read_text()[:40_000])
    choices = {"seq_len": 32, "batch_size": 2, "steps": steps, "val_every": 10, "save_every": 10, "lr": 1e-3}
    config = resolve(str(folder / "small.json"), str(folder / "text.txt"), {**choices, **DEVICE, "out": folder / "run"})
    watch = Watch()
    run(config, watch, ["soak"])
    tenth = steps // 10
    early, late = slice(tenth, 2 * tenth), slice(-tenth, None)
    return {
        "steps": steps,
        "megabytes_early": statistics.median(watch.megabytes[early]),
        "megabytes_late": statistics.median(watch.megabytes[late]),
        "files_early": max(watch.files[early]),
        "files_late": max(watch.files[late]),
        "programs_early": max(watch.programs[early]),
        "programs_late": max(watch.programs[late]),
    }


def main() -> None:
    """Train 500 steps and write the record."""
    with tempfile.TemporaryDirectory() as folder:
        figures = soak(Path(folder), STEPS)
    figures["growth"] = figures["megabytes_late"] / figures["megabytes_early"] - 1
    record.write("soak", figures)
