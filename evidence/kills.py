"""A run killed again and again at random moments and resumed each time, beside one that nobody disturbs."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from anew.errors import UserError
from anew.train.checkpoint import Checkpoints, open_checkpoint, step_of
from evidence import record

KILLS, STEPS, SAVE_EVERY = 20, 600, 3
MODEL = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 288,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "attention_dropout": 0.1,
}
#: Fields of a metrics record that tell of the machine, not of the training.
TIMED = {"seconds", "tokens_per_second", "peak_memory", "joules", "device_seconds"}
ANEW = [sys.executable, "-c", "import sys; from anew.cli.main import main; sys.exit(main())"]


def metrics(run: Path) -> list[dict[str, Any]]:
    """The records of a run without what a clock or the machine decides."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


class Process(Protocol):
    """What is asked of a process, as subprocess.Popen gives it."""

    @property
    def returncode(self) -> int | None:
        """How it ended; negative if it was killed."""

    def poll(self) -> int | None:
        """Return ``returncode``, None while it runs."""

    def kill(self) -> None:
        """Send SIGKILL."""

    def communicate(self) -> tuple[Any, Any]:
        """Wait for the end; return what it printed to standard output and to standard error."""


def popen(words: list[str]) -> Process:
    """Start `anew`."""
    return subprocess.Popen([*ANEW, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def command(folder: Path, name: str, device: str, steps: int) -> list[str]:
    """The arguments of `anew` that start a run; its inputs are written to the folder."""
    (folder / "small.json").write_text(json.dumps(MODEL))
    (folder / "text.txt").write_text((record.ROOT / "data" / "austen.txt").read_text()[:40_000])
    paths = ["--preset", f"{folder}/small.json", "--data", f"{folder}/text.txt", "--out", f"{folder}/{name}"]
    words = f"--seq-len 32 --batch-size 2 --steps {steps} --val-every 10 --save-every {SAVE_EVERY} --lr 0.003"
    return ["train", *paths, *words.split(), "--device", device]


def resumed(run: Path, start: list[str]) -> list[str]:
    """The arguments that go on with a run, or start it if no checkpoint was written yet."""
    return ["train", "--resume", str(run)] if Checkpoints(run).latest() else start


def kill_at_random(process: Process, run: Path, moments: random.Random, most: int, starting: float) -> bool:
    """Kill a process, one time in five while it starts, else after up to `most` saves; False if it ended.

    The last wait is shorter than a few steps, so that the kill may come in a step, in a save or between.
    """
    if moments.random() < 0.2:
        time.sleep(moments.uniform(0, starting))
    else:
        enough = _latest(run) + SAVE_EVERY * moments.randint(1, most)
        while process.poll() is None and _latest(run) < enough:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.03))
    process.kill()
    return wait_for(process) != 0


def wait_for(process: Process) -> int:
    """Return how a process ended, 0 or the negative number of a signal; RuntimeError if it failed by itself."""
    _, error = process.communicate()
    if process.returncode is None or process.returncode > 0:
        raise RuntimeError(error)
    return process.returncode


def _latest(run: Path) -> int:
    """The step of a run's latest checkpoint; 0 before there is one."""
    latest = Checkpoints(run).latest()
    return step_of(latest) if latest else 0


def broken(run: Path) -> list[str]:
    """What is wrong with the checkpoints of a run, `latest` among them."""
    found = []
    try:
        Checkpoints(run).latest()
        for path in Checkpoints(run).all():
            open_checkpoint(path)
    except UserError as error:
        found.append(str(error))
    return found


def survive(
    folder: Path,
    kills: int,
    steps: int,
    device: str,
    seed: int = 0,
    launch: Callable[[list[str]], Process] = popen,
    starting: float = 4.0,
) -> dict[str, Any]:
    """Kill and resume a run; returns how often and where it was killed, what broke, and whether metrics are equal.

    ``launch`` starts `anew` with the given arguments, which takes ``starting`` seconds.
    """
    wait_for(launch(command(folder, "whole", device, steps)))
    start = command(folder, "killed", device, steps)
    run, moments, at, wrong = folder / "killed", random.Random(seed), [], []
    partial, most = 0, steps // (2 * SAVE_EVERY * kills)  # half of the steps are left for kills that come late
    while len(at) < kills and kill_at_random(launch(resumed(run, start)), run, moments, most, starting):
        at.append(_latest(run))
        partial += bool(Checkpoints(run).partial())
        wrong += broken(run)
    wait_for(launch(resumed(run, start)))
    whole, killed = metrics(folder / "whole"), metrics(run)
    return {
        "kills": len(at),
        "checkpoint_at_kill": at,
        "kills_that_left_partial_folders": partial,
        "broken_files": wrong,
        "steps": steps,
        "records": len(killed),
        "records_that_differ": sum(a != b for a, b in zip(whole, killed, strict=True)),
        "device": device,
    }


def main() -> None:
    """Kill a run on the emulated engine 20 times and write the record."""
    with tempfile.TemporaryDirectory() as folder:
        figures = survive(Path(folder), KILLS, STEPS, "emulator")
    if len(set(figures["checkpoint_at_kill"])) < KILLS // 2:
        raise SystemExit(f"too few kills came after a new checkpoint: {figures}")
    if figures["kills"] < KILLS or figures["broken_files"] or figures["records_that_differ"]:
        raise SystemExit(f"a killed run did not survive: {figures}")
    record.write("kills", figures)
