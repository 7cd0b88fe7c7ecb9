"""The memory that `anew train` and `anew finetune` estimate before they start, beside the peak of the run.

``python -m evidence memory`` after ``make finetune-demo``, which brings a model to fine-tune.
"""

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
from evidence.finetune import settings

#: Preset, device, batch size, tokens in a row.
CASES = (
    ("tiny", "emulator", 8, 128),
    ("stories15m", "cpu", 4, 256),
    ("stories15m", "emulator", 4, 256),
    ("stories15m", "emulator", 8, 512),
    ("stories110m", "cpu", 1, 256),
    ("stories110m", "emulator", 1, 256),
)
#: Device, whether activations are computed twice, and rows of 128 tokens: with the fine-tuning demo's model and data.
FINETUNED = (("cpu", False, 4), ("emulator", False, 4), ("emulator", True, 4), ("emulator", False, 8))


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


def measure_finetuning(device: str, checkpoint: bool, batch_size: int) -> dict[str, float]:
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
        module.run(config, PlainDisplay(), ["memory"])
        run = json.loads((config.adapter_path / "run.json").read_text())
    return {"estimated": run["estimated_memory"], "measured": run["peak_memory"] - before["peak"]}


def in_a_process(measured: str, case: tuple[Any, ...]) -> dict[str, float]:
    """Measure a case in a process of its own."""
    code = f"import json; from evidence.memory import {measured}; print(json.dumps({measured}(*{case!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "ratio": found["estimated"] / found["measured"]}


def main() -> None:
    """Measure every case and write the record."""
    figures = {"_".join(map(str, case)): in_a_process("measure", case) for case in CASES}
    for device, checkpoint, rows in FINETUNED:
        name = f"finetune_{device}_{rows}" + ("_checkpoint" if checkpoint else "")
        figures[name] = in_a_process("measure_finetuning", (device, checkpoint, rows))
    record.write("memory", figures)
