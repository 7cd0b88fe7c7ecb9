"""``--report-to``: a run's records go to TensorBoard, W&B, trackio and others through transformers' own callbacks.

Whatever `transformers.integrations` has a callback for works here, under the name that the Trainer's ``report_to``
knows it by, and with its environment variables (``WANDB_MODE``, ``TENSORBOARD_LOGGING_DIR``, ``TRACKIO_DIR`` ...).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from anew.errors import UserError
from anew.train.metrics import Record

#: Where services look for a project's name that do not take it from the arguments.
PROJECT_VARIABLES = ("WANDB_PROJECT", "SWANLAB_PROJECT")
#: The Trainer's name for each value of a record that is reported; the services show them as train/... and eval/...
NAMES = {
    "train_loss": "loss",
    "val_loss": "eval_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "seconds": "seconds",
    "tokens_per_second": "tokens_per_second",
    "trained_tokens": "trained_tokens",
    "rescaled": "rescaled",
    "peak_memory": "peak_memory",
}


class _RunArguments(TrainingArguments):
    """What the callbacks ask of the Trainer's arguments; shown as a run's configuration are the settings of anew."""

    settings: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The settings of the run."""
        return dict(self.settings)

    def to_json_string(self) -> str:
        """The settings of the run."""
        return json.dumps(self.to_dict(), indent=2)

    def to_sanitized_dict(self) -> dict[str, Any]:
        """The settings of the run."""
        return self.to_dict()


class Trackers:
    """The services that a run reports to.

    Args:
        names: as the Trainer's ``report_to`` takes them, with commas between; None for no service.
        folder: the run's folder; its name becomes the run's.
        project: what runs are grouped under, for services that do so.
        settings: the run's settings, as JSON values.

    Raises UserError for a name that transformers does not know and for a service whose package is not installed.
    """

    def __init__(self, names: str | None, folder: Path, project: str | None, settings: Mapping[str, Any]) -> None:
        self.callbacks = _callbacks(names)
        if not self.callbacks:
            return
        if project is not None:
            os.environ.update(dict.fromkeys(PROJECT_VARIABLES, project))
        named = {} if project is None else {"project": project}
        self.arguments = _RunArguments(str(folder), run_name=folder.name, use_cpu=True, report_to="none", **named)
        self.arguments.settings = settings
        self.state = TrainerState()
        self.control = TrainerControl()

    @classmethod
    def of(cls, config: Any) -> Self:
        """Those that settings with ``report_to``, ``project_name`` and a folder name."""
        return cls(config.report_to, config.folder, config.project_name, config.as_json())

    @contextmanager
    def watching(self, model: nn.Module, steps: int) -> Iterator[Self]:
        """Open a run with every service, and close it at the end, however that comes."""
        if self.callbacks:
            self.state.max_steps = steps
            self._send("on_train_begin", model=model)
        try:
            yield self
        finally:
            if self.callbacks:
                self._send("on_train_end", model=model)

    def write(self, record: Record) -> None:
        """Report what a record has measured."""
        if self.callbacks:
            self.state.global_step = record.iteration
            values = {shown: getattr(record, name) for name, shown in NAMES.items()}
            self._send("on_log", logs={name: value for name, value in values.items() if value is not None})

    def _send(self, event: str, **what: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self.arguments, self.state, self.control, **what)


def _callbacks(names: str | None) -> list[TrainerCallback]:
    listed = [name.strip() for name in (names or "").split(",") if name.strip()]
    try:
        kinds = get_reporting_integration_callbacks(listed[0] if len(listed) == 1 else listed)
        return [kind() for kind in kinds]
    except (ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"--report-to {names}: {error}") from error
