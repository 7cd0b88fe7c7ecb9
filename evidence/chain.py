"""The changes that made a training step cheaper, and by how much each: projected at the same prices, from the history.

Every commit of the main line since :data:`BASE` that touches what runs in a step is laid out with today's prices over
it; its own estimate compiles and counts its programs. Its gain is over its parent there. What was counted is kept, so
that a run that was interrupted goes on. Changes before the base stay as they were recorded.
"""

from __future__ import annotations

import functools
import hashlib
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

#: Before the first of the changes that are counted.
BASE = "64e5484"
#: What runs in a step and counts it; and what prices it, which is today's for every commit.
RUNS = ("compiler", "frontend", "device", "plan", "optim", "estimate")
PRICES = ("projection",)
#: Commits whose own estimate did not see what they changed, by the one whose estimate is the first to.
SEEN_BY = {"e29c553": "Between calls that measure a layer runs a program without maxima, with scales only where needed"}
#: Where what was counted is kept: the milliseconds, or why there are none, by a digest of what they come from.
KEPT = ROOT / "runs" / "chain"
#: Milliseconds below which a change of a step is not listed.
SEEN = 0.05
#: What a subject may begin with that says nothing of the change.
PREFIX = re.compile(r"^(\w+ slice \d+|Merge branch '\w+'): ")
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
    lines = git("log", "--reverse", "--first-parent", "--format=%h %p%x09%s", f"{BASE}..HEAD", "--", *paths)
    found = []
    for line in lines.splitlines():
        commits, _, subject = line.partition("\t")
        commit, parent, *_ = commits.split()
        title = SEEN_BY.get(commit, PREFIX.sub("", subject))
        found.append((commit, parent, title[:1].upper() + title[1:]))
    return found


def projected(commit: str) -> dict[str, Any]:
    """Return the milliseconds of a step of stories110m with the programs of a commit, by batch.

    Where its estimate cannot count them at today's prices there is a ``reason`` instead.
    """
    kept = KEPT / f"{_digest(commit)}.json"
    if not kept.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".partial")
        partial.write_text(json.dumps(_count(commit)))
        partial.rename(kept)
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def _digest(commit: str) -> str:
    """Of what the figures of a commit come from: what it runs, and today's prices and this module."""
    runs = git("ls-tree", commit, *(f"src/anew/{name}" for name in RUNS))
    return hashlib.sha256((runs + _prices()).encode()).hexdigest()[:16]


@functools.cache
def _prices() -> str:
    files = [f for name in PRICES for f in sorted((ROOT / "src" / "anew" / name).rglob("*")) if f.is_file()]
    digests = [hashlib.sha256(f.read_bytes()).hexdigest() for f in (*files, Path(__file__)) if f.suffix != ".pyc"]
    return "".join(digests)


def _count(commit: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        lay_out(commit, Path(folder))
        environment = os.environ | {"PYTHONPATH": str(Path(folder) / "src")}
        done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
    if done.returncode < 0:
        raise KeyboardInterrupt(f"counting {commit} was stopped by signal {-done.returncode}")
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    found: dict[str, Any] = {"reason": lines[-1]} if done.returncode else json.loads(lines[-1])
    return found


def lay_out(commit: str, folder: Path) -> None:
    """Write the sources of a commit, with today's prices over them."""
    archive = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    for name in PRICES:
        there = folder / "src" / "anew" / name
        shutil.rmtree(there, ignore_errors=True)
        shutil.copytree(ROOT / "src" / "anew" / name, there)


def main() -> None:
    """Project every change, write the record and the table of docs/estimate.md."""
    listed, last = changes(), git("rev-parse", "--short", "HEAD")
    ms: dict[str, dict[str, Any]] = {}
    for commit in dict.fromkeys([*(c for change in listed for c in (change[1], change[0])), last]):
        ms[commit] = projected(commit)
        print(commit, ms[commit], flush=True)
    kept, uncounted = gains(listed, ms)
    kept = record.read("chain")["changes"] | kept
    first = ms[listed[0][1]] if listed else {}
    record.write("chain", {"changes": kept, "uncounted": uncounted, "first": first, "last": ms[last]})
    record.write_table("estimate.md", "chain", [_row(c, f) for c, f in kept.items()])


def gains(
    listed: list[tuple[str, str, str]], ms: dict[str, dict[str, Any]]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, str]]]:
    """Return what each change took off its parent's milliseconds, where that is seen, and what could not be counted."""
    found: dict[str, dict[str, Any]] = {}
    uncounted: dict[str, dict[str, str]] = {}
    for commit, parent, subject in listed:
        reasons = [ms[c]["reason"] for c in (commit, parent) if "reason" in ms[c]]
        if reasons:
            uncounted[f"c{commit}"] = {"subject": subject, "reason": reasons[0]}
            continue
        less = {f"gain_{batch}_ms": ms[parent][batch] - ms[commit][batch] for batch in ms[commit]}
        if any(abs(gain) > SEEN for gain in less.values()):
            found[f"c{commit}"] = {"subject": subject} | less
    return found, uncounted


def _row(commit: str, figures: dict[str, Any]) -> list[str]:
    gains = (
        f'[{figures[key]:.1f}](evidence/chain.json "changes.{commit}.{key}")' for key in figures if key != "subject"
    )
    return [figures["subject"], *gains]
