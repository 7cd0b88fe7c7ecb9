"""The memory that `anew finetune` estimates before it trains, beside the peak of the run.

``python -m evidence finetune_memory`` after ``make finetune-demo``, which brings model and data.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from anew.train.display import PlainDisplay
from anew.train.memory import peak_memory
from evidence import record
from evidence.finetune import settings

#: Device, whether activations are computed twice, and rows of 128 tokens.
CASES = (
    ("cpu", False, 4),
    ("cpu", True, 4),
    ("emulator", False, 4),
    ("emulator", False, 8),
    ("emulator", True, 8),
)


def measure(device: str, checkpoint: bool, batch_size: int) -> dict[str, float]:
    """Two iterations in this process; returns gigabytes estimated, and the peak beyond what data and imports took."""
    from anew.finetune import run as module

    before = {}
    check_memory = module.check_memory

    def noting_check(model: Any, config: Any, train: Any) -> Any:
        weights = sum(
            p.numel() * bool(p.detach().sum().isfinite()) for p in model.parameters()
        )  # read: files are mapped
        before["peak"] = peak_memory() - 4e-9 * weights
        return check_memory(model, config, train)

    module.check_memory = noting_check  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        chosen = {"grad_checkpoint": checkpoint, "batch_size": batch_size, "adapter_path": Path(folder) / "out"}
        config = settings(device, "fast", 2, **chosen)
        module.run(config, PlainDisplay(), ["finetune_memory"])
        run = json.loads((config.adapter_path / "run.json").read_text())
    return {"estimated": run["estimated_memory"], "measured": run["peak_memory"] - before["peak"]}


def main() -> None:
    """Measure every case in a process of its own and write the record."""
    figures = {}
    for case in CASES:
        code = f"import json; from evidence.finetune_memory import measure; print(json.dumps(measure(*{case!r})))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        device, checkpoint, rows = case
        name = f"{device}_{rows}" + ("_checkpoint" if checkpoint else "")
        figures[name] = {**found, "ratio": found["estimated"] / found["measured"]}
    record.write("finetune_memory", figures)
