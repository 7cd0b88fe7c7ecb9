"""The memory that `anew train` estimates before it starts, beside the peak of the run."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from anew.train.config import resolve
from anew.train.display import PlainDisplay
from anew.train.memory import peak_memory
from evidence import record

#: Preset, device, batch size, tokens in a row.
CASES = (
    ("tiny", "emulator", 8, 128),
    ("stories15m", "cpu", 4, 256),
    ("stories15m", "emulator", 4, 256),
    ("stories15m", "emulator", 8, 512),
    ("stories110m", "cpu", 1, 256),
    ("stories110m", "emulator", 1, 256),
)


def measure(preset: str, device: str, batch_size: int, seq_len: int) -> dict[str, float]:
    """Two steps in this process; returns gigabytes estimated, and the peak beyond what data and imports took."""
    from anew.train import run as module

    before = {}
    place = module.place

    def noting_place(model: Any, config: Any) -> Any:
        before["peak"] = peak_memory() - 4e-9 * sum(p.numel() for p in model.parameters())
        return place(model, config)

    module.place = noting_place
    with tempfile.TemporaryDirectory() as folder:
        choices = {"steps": 2, "device": device, "batch_size": batch_size, "seq_len": seq_len, "grad_accum": 1}
        data = record.ROOT / "data" / "austen.txt"
        config = resolve(preset, str(data), {**choices, "val_every": 9, "out": Path(folder) / "run"})
        module.run(config, PlainDisplay(), ["memory"])
        run = json.loads((config.out / "run.json").read_text())
    return {"estimated": run["estimated_memory"], "measured": run["peak_memory"] - before["peak"]}


def main() -> None:
    """Measure every case in a process of its own and write the record."""
    figures = {}
    for case in CASES:
        code = f"import json; from evidence.memory import measure; print(json.dumps(measure(*{case!r})))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        found["ratio"] = found["estimated"] / found["measured"]
        figures["_".join(map(str, case))] = found
    record.write("memory", figures)
