"""Metrics of a run: one record a step, kept as lines of JSON."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType


@dataclass(frozen=True)
class Record:
    """What is known after `iteration` optimizer steps; iteration 0 is the untrained model.

    Losses are mean natural-log cross-entropies per token; `grad_norm` is before clipping; `rescaled` counts
    since the start; `peak_memory` is in GB. Values that were not measured are None.
    """

    iteration: int
    train_loss: float | None
    val_loss: float | None
    learning_rate: float | None
    grad_norm: float | None
    tokens_per_second: float | None
    loss_scale: float
    rescaled: int
    peak_memory: float


class MetricsFile:
    """A metrics.jsonl under construction; every record is on disk once written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append a record as one line."""
        self._file.write(json.dumps(dataclasses.asdict(record)) + "\n")
        self._file.flush()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
