"""Metrics of a run: one record a step, kept as lines of JSON."""

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from anew.errors import UserError

#: The file's name in the run's folder.
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Record:
    """What is known after `iteration` steps; iteration 0 is the model as it was given.

    Losses are mean natural-log cross-entropies per token; `grad_norm` is before clipping; `seconds` are those of the
    step; `rescaled` and `trained_tokens` count since the start; `peak_memory` is in GB; `joules` are those of the step
    and of the whole machine, by rail; `device_seconds` are the part of `seconds` in which programs ran on the device;
    `sample` is text that the model made after these steps. Values that were not measured are None.
    """

    iteration: int
    train_loss: float | None
    val_loss: float | None
    learning_rate: float | None
    grad_norm: float | None
    seconds: float | None
    tokens_per_second: float | None
    trained_tokens: int
    loss_scale: float
    rescaled: int
    peak_memory: float
    joules: dict[str, float | None] | None = None
    device_seconds: float | None = None
    sample: str | None = None


class MetricsFile:
    """A metrics.jsonl under construction; every record is on disk once written."""

    def __init__(self, path: Path, kept: Sequence[Record] = ()) -> None:
        """Begin a file with the records of `kept` in place of the one at `path`; raises UserError if it cannot."""
        self._path = path
        partial = path.with_name(path.name + ".partial")
        try:
            self._file = partial.open("w", encoding="utf-8")
            for record in kept:
                self.write(record)
            self.sync()
            partial.replace(path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error

    def write(self, record: Record) -> None:
        """Append a record as one line; raises UserError if the disk does not take it."""
        try:
            self._file.write(json.dumps(dataclasses.asdict(record)) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}; free some space") from error

    def sync(self) -> None:
        """Return once every record is on the disk."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def parse_records(path: Path) -> Iterator[Record]:
    """Yield the records of a metrics.jsonl; raises UserError that names the line which is none."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield Record(**json.loads(line))
                except (ValueError, TypeError) as error:
                    raise UserError(f"{path}:{number} is no record of a run: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def read_records(path: Path, last: int) -> list[Record]:
    """Return the records of iterations 0 to `last`; raises UserError if a metrics.jsonl does not have them all."""
    try:
        records = list(itertools.islice(parse_records(path), last + 1))
    except UserError as error:
        raise UserError(f"cannot read {path} up to iteration {last}: {error}") from error
    if [record.iteration for record in records] != list(range(last + 1)):
        raise UserError(f"{path} does not have iterations 0 to {last}, which the checkpoint comes after")
    return records
