"""The changes that made a training step cheaper, and by how much each: projected at the same prices, from the history.

Every commit since :data:`BASE` that touches what runs in a step is laid out with today's projection and estimate over
it, and its programs are compiled and counted. Its gain is over its own parent, so that branches may have grown side by
side.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

from evidence import record
from evidence.record import ROOT

#: Before the first of the changes.
BASE = "e08f21f"
#: What runs in a step; and what counts and prices it, which is today's for every commit: the model's compilation tells
#: the estimate's optimizer of the estimate's session.
RUNS = ("compiler", "frontend", "device", "plan", "optim")
PRICES = ("projection", "estimate", "frontend/model.py")
#: What a subject may begin with that says nothing of the change.
PREFIX = re.compile(r"^\w+ slice \d+: ")
#: Run over each commit's programs.
CODE = """
import json
from transformers import AutoConfig
from anew.estimate.capture import Setting
from anew.estimate.step import estimate
from anew.train.presets import PRESETS
config = AutoConfig.for_model(**PRESETS["stories110m"].model)
print(json.dumps({f"batch_{n}": 1e3 * estimate(Setting(config, 256, n), "m4").seconds for n in (1, 8)}))
"""


def git(*words: str) -> str:
    """Return what git says; raises CalledProcessError with its words where the history is not there."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def changes() -> list[tuple[str, str, str]]:
    """Return commit, parent and subject of every change since the base that alters the projection, oldest first."""
    paths = [f"src/anew/{name}" for name in RUNS]
    lines = git("log", "--reverse", "--no-merges", "--format=%h %p%x09%s", f"{BASE}..HEAD", "--", *paths)
    found = []
    for line in lines.splitlines():
        commits, _, subject = line.partition("\t")
        commit, parent = commits.split()
        title = PREFIX.sub("", subject)
        found.append((commit, parent, title[:1].upper() + title[1:]))
    return found


def projected(commit: str) -> dict[str, float]:
    """Return the milliseconds of a step of stories110m with the programs of a commit, by batch."""
    archive = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        for name in PRICES:
            here, there = ROOT / "src" / "anew" / name, Path(folder) / "src" / "anew" / name
            shutil.copytree(here, there, dirs_exist_ok=True) if here.is_dir() else shutil.copy(here, there)
        done = subprocess.run(
            [sys.executable, "-c", CODE],
            env=os.environ | {"PYTHONPATH": str(Path(folder) / "src")},
            capture_output=True,
            text=True,
            check=True,
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Project every change, write the record and the table of docs/estimate.md."""
    listed = changes()
    commits = {commit for change in listed for commit in change[:2]} | {git("rev-parse", "--short", "HEAD")}
    ms = {c: projected(c) for c in sorted(commits)}
    figures = {
        c: {"subject": subject} | {f"gain_{batch}_ms": ms[parent][batch] - ms[c][batch] for batch in ms[c]}
        for c, parent, subject in listed
    }
    kept = {c: f for c, f in figures.items() if any(abs(v) > 0.05 for k, v in f.items() if k != "subject")}
    ends = {"first": ms[listed[0][1]] if listed else {}, "last": ms[git("rev-parse", "--short", "HEAD")]}
    record.write("chain", {"changes": {f"c{c}": f for c, f in kept.items()}, **ends})
    record.write_table("estimate.md", "chain", [_row(f"c{c}", f) for c, f in kept.items()])


def _row(commit: str, figures: dict[str, Any]) -> list[str]:
    gains = (
        f'[{figures[key]:.1f}](evidence/chain.json "changes.{commit}.{key}")' for key in figures if key != "subject"
    )
    return [figures["subject"], *gains]
