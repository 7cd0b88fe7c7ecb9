"""A callback for ``transformers.Trainer`` and what builds on it, such as ``trl.SFTTrainer``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from anew.errors import UserError
from anew.frontend.ranks import share_scales
from anew.frontend.state import load_state_dict, state_dict
from anew.train.record import write_json

#: The file beside the weights in a checkpoint of the Trainer.
FILE = "anew.json"


class EngineState(TrainerCallback):
    """Keeps the engine's side of a model in the Trainer's checkpoints, and equal in all processes.

    A Trainer without it trains as well, and a run that resumes without it begins with calibrating runs and a check of
    the loss region: its losses then are those of the undisturbed run up to rounding. With it they are equal to the
    bit. It resumes from checkpoints in ``output_dir``.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Load what the checkpoint that is resumed holds; raises UserError if the file is damaged."""
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / FILE
        if state.global_step == 0 or not path.exists():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}): delete it, and the run calibrates anew") from error
        load_state_dict(kwargs["model"], found)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Agree on operand scales with the other processes, if there are any."""
        share_scales(kwargs["model"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the state into the checkpoint that was just made."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(folder / FILE, state_dict(kwargs["model"]))
