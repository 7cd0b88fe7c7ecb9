"""A run as it lies on the disk: what was run, and its records."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anew.errors import UserError
from anew.train.metrics import METRICS, Record, parse_records
from anew.train.record import RUN


@dataclass(frozen=True)
class Run:
    """One run of ``anew train`` or ``anew finetune``.

    Attributes:
        name: what charts and tables call it. folder: where it lies.
        about: its run.json. records: its metrics.jsonl, the model as it was given first.
    """

    name: str
    folder: Path
    about: dict[str, Any]
    records: list[Record]

    @property
    def projection(self) -> dict[str, Any]:
        """What its step would take on each chip, as :func:`anew.estimate.run.projection` says; empty if cut off."""
        found: dict[str, Any] = self.about.get("projection", {})
        return found


def read_run(folder: Path, name: str | None = None) -> Run:
    """Read the run in a folder, called by that folder's name unless another is given.

    Raises UserError if there is none, or one of its files cannot be read; that of a bad record names the line.
    """
    path = folder / RUN
    if not path.is_file():
        raise UserError(f"{folder} holds no {RUN}: give the output folder of anew train or anew finetune")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(about, dict) or "config" not in about:
        raise UserError(f"{path} is no record of a run: give the output folder of anew train or anew finetune")
    return Run(name or folder.resolve().name, folder, about, list(parse_records(folder / METRICS)))


def read_runs(folders: list[Path]) -> list[Run]:
    """Read several runs; those whose folders are called the same are named by their paths."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    if len(set(names)) < len(names):
        raise UserError(f"{next(n for n in names if names.count(n) > 1)} is given twice: give each run once")
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
