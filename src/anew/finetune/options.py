"""Every option of ``anew finetune``, once: flags, YAML keys, defaults and checks all come from these fields.

Names and defaults up to ``trust_remote_code`` are those of ``mlx_lm.lora`` (mlx-lm 0.32, ``lora.py``); what anew adds
stands below. An option without help has no flag: it is for the YAML file alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anew.device.machine import default_chip
from anew.device.routes import ROUTES
from anew.train.settings import Settings

#: mlx_lm's LoRA: rank, dropout, and the factor of the product B A (peft: lora_alpha / r).
LORA_PARAMETERS = {"rank": 8, "dropout": 0.0, "scale": 20.0}


def option(default: Any, text: str = "", *, metavar: str | None = None, choices: tuple[str, ...] = ()) -> Any:
    """A field of :class:`FinetuneConfig`; with a text it has a flag."""
    metadata = {"help": text, "metavar": metavar, "choices": choices}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class FinetuneConfig(Settings):
    """Everything that decides a fine-tuning run, and how often it is saved. Steps are batches, as in mlx_lm."""

    VERB = "finetune"
    FOLDER = "adapter_path"
    FREE = (
        *("data", "save_every", "keep", "steps_per_report", "train", "test", "test_batches"),
        *("report_to", "project_name", "clear_cache_threshold", "recheck", "worker", "allow_swap", "plain"),
    )

    model: str = option("Qwen/Qwen3-0.6b", "a Hugging Face folder, a GGUF file, or a name on the hub", metavar="MODEL")
    train: bool = option(False, "train")
    data: str = option(
        "mlx-community/WikiSQL",
        "a folder with train.jsonl, valid.jsonl and test.jsonl, or a data set of the Hugging Face hub",
        metavar="DATA",
    )
    fine_tune_type: str = option("lora", "what to train: adapters, or the weights", choices=("lora", "dora", "full"))
    optimizer: str = option("adam", "PyTorch's", choices=("adam", "adamw", "muon", "sgd", "adafactor"))
    optimizer_config: dict[str, Any] = option({})
    mask_prompt: bool = option(False, "learn from completions, or the last message, alone")
    num_layers: int = option(16, "layers to train, counted from the last; -1: all", metavar="N")
    batch_size: int = option(4, "rows in a batch", metavar="N")
    iters: int = option(1000, "batches to train on", metavar="N")
    val_batches: int = option(25, "batches to validate on; -1: all", metavar="N")
    learning_rate: float = option(1e-5, "learning rate", metavar="X")
    steps_per_report: int = option(10, "iterations between reports", metavar="N")
    steps_per_eval: int = option(200, "iterations between validations", metavar="N")
    grad_accumulation_steps: int = option(1, "batches for one step of the optimizer", metavar="N")
    resume_adapter_file: str | None = option(None, "begin from these weights, of mlx_lm or peft", metavar="FILE")
    adapter_path: Path = option(Path("adapters"), "output folder", metavar="DIR")
    save_every: int = option(100, "iterations between saves; 0: only at Ctrl-C and the end", metavar="N")
    test: bool = option(False, "measure loss and perplexity of the test data")
    test_batches: int = option(500, "batches to test on; -1: all", metavar="N")
    max_seq_length: int = option(2048, "tokens at which a row is cut", metavar="N")
    grad_checkpoint: bool = option(False, "compute activations twice to save memory")
    clear_cache_threshold: str | int = option(0, "no effect: there is no such cache", metavar="SIZE")
    report_to: str | None = option(
        None, "services to report to, with commas between: tensorboard, wandb, trackio and others", metavar="NAMES"
    )
    project_name: str | None = option(None, "what a service groups runs under", metavar="NAME")
    seed: int = option(0, "of adapters, dropout and the order of batches", metavar="N")
    trust_remote_code: bool = option(False, "run model code that comes with the model")
    lora_parameters: dict[str, Any] = option(LORA_PARAMETERS)
    lr_schedule: dict[str, Any] | None = option(None)
    hf_dataset: Any = option(None)
    prompt_feature: str = option("prompt")
    completion_feature: str = option("completion")
    chat_feature: str = option("messages")
    text_feature: str = option("text")

    assistant_only_loss: bool = option(False, "learn from all messages of the assistant alone")
    packing: bool = option(False, "put several rows into one; they do not see each other")
    max_grad_norm: float = option(0.0, "highest gradient norm; 0 clips nothing", metavar="X")
    keep: int = option(2, "checkpoints to keep for --resume", metavar="N")
    device: str = option(
        "auto",
        "auto: the first route to the engine that works here, or the emulator, and says why; cpu: plain PyTorch",
        choices=("auto", *ROUTES, "emulator", "cpu"),
    )
    chip: str = option(default_chip(), "the chip to compile for and to emulate", metavar="NAME")
    numerics: str = option(
        "fast",
        "exact: the engine's arithmetic bit for bit; fast: without its finest rounding",
        choices=("exact", "fast"),
    )
    recheck: int = option(0, "every so many runs on the engine are compared with the emulator; 0: none", metavar="N")
    worker: bool = option(False, "let a process of its own drive the device: if it aborts or hangs, it is replaced")
    base_bits: int = option(0, "16 or 8: compile the frozen base into the programs; 0: weights are inputs", metavar="N")
    allow_swap: bool = option(False, "start even if more memory is needed than there is")
    plain: bool = option(False, "print log lines on a terminal too")

    @property
    def steps(self) -> int:
        """How many steps the run has: batches, not steps of the optimizer."""
        return self.iters

    @property
    def val_every(self) -> int:
        """Steps between validations."""
        return self.steps_per_eval


OPTIONS = {field.name: field for field in dataclasses.fields(FinetuneConfig)}
