"""One fine-tuning run from a pretrained model to adapters: the order of events, and what is left in the folder."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from anew.adapters import load_weights
from anew.adapters.forms import MLX_WEIGHTS
from anew.errors import UserError
from anew.estimate.counted import Setting
from anew.estimate.run import projection
from anew.finetune.adapt import describe_trainable, prepare
from anew.finetune.batches import Batches
from anew.finetune.estimate import check_memory, check_weights
from anew.finetune.examples import Encoder, Example, fit, stop_tokens
from anew.finetune.loop import Finetuning, evaluate
from anew.finetune.options import FinetuneConfig
from anew.finetune.preview import preview, stop_warning
from anew.finetune.rows import read_rows
from anew.finetune.sample import sample
from anew.models import load
from anew.report import REPORT
from anew.train.checkpoint import Checkpoint
from anew.train.conduct import conduct, describe_result, first_record, open_folder, records_until
from anew.train.device import describe_device, place, statistics
from anew.train.display import Display
from anew.train.memory import keep_freed_memory
from anew.train.model import count_parameters
from anew.train.resume import Saver
from anew.train.trackers import Trackers

#: Settings that decide what a step computes besides the model, the batch and the constants of the base.
DECIDES = ("fine_tune_type", "num_layers", "lora_parameters", "grad_checkpoint")


@dataclass(frozen=True)
class Data:
    """The batches of each split that the run uses; None where there are no rows."""

    train: Batches | None
    valid: Batches | None
    test: Batches | None
    first: Example | None

    @property
    def digest(self) -> str:
        """SHA-256 of what is learned from and validated on, wherever it lies."""
        parts = [batches.digest() if batches else "" for batches in (self.train, self.valid)]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()


def run(config: FinetuneConfig, display: Display, command: Sequence[str], checkpoint: Checkpoint | None = None) -> bool:
    """Train, test, or both, as configured; return False if the user interrupted.

    Everything is left in ``adapter_path``; with a `checkpoint` of that folder training goes on from there. Raises
    AnewError for bad data, models, adapters and settings, for training that diverges and for a full disk.
    """
    keep_freed_memory()
    trackers = Trackers.of(config)
    check_weights(config)
    display.say("Loading pretrained model")
    adapter = None if config.train else config.adapter_path
    model, tokenizer = load(config.model, adapter=adapter, trust_remote_code=config.trust_remote_code)
    display.say("Loading datasets")
    data = _load_data(config, model, tokenizer, display)
    done = True
    if config.train:
        model, done = _train(model, tokenizer, config, data, display, command, checkpoint, trackers)
    else:
        model = place(model, config)
    if config.test and done:
        _test(model, config, data, display)
    return done


def _load_data(config: FinetuneConfig, model: nn.Module, tokenizer: Any, display: Display) -> Data:
    wanted = [*(("train", "valid") if config.train else ()), *(("test",) if config.test else ())]
    rows = read_rows(config, wanted)
    for split in ("train", "test"):
        if split in wanted and not rows[split]:
            if config.hf_dataset is not None:
                raise UserError(f"hf_dataset gives no rows to {split} on: name them with '{split}_split'")
            raise UserError(f"{config.data} holds no rows to {split} on: {split}.jsonl is missing or empty")
    if "valid" in wanted and not rows["valid"]:
        display.say("[WARNING] Validation set not found or empty. Training will proceed without validation.")
    encoder = Encoder(tokenizer, mask_prompt=config.mask_prompt, assistant_only=config.assistant_only_loss)
    longest = _longest(config, model)
    found: dict[str, Batches] = {}
    first = None
    for split, part in rows.items():
        examples, said = fit(encoder.encode(part), longest, split)
        for line in said:
            display.say(line)
        if split == "train":
            first = examples[0]
            if warning := stop_warning(examples, stop_tokens(model, tokenizer), tokenizer):
                display.say(warning)
        if examples:
            found[split] = Batches(examples, config.batch_size, longest, packing=config.packing)
    return Data(found.get("train"), found.get("valid"), found.get("test"), first)


def _longest(config: FinetuneConfig, model: nn.Module) -> int:
    """The tokens of the longest row: no more than the model has positions for."""
    settings: Any = model.config
    positions = getattr(settings.get_text_config(), "max_position_embeddings", None)
    return min(config.max_seq_length, positions) if isinstance(positions, int) else config.max_seq_length


def _train(
    model: nn.Module,
    tokenizer: Any,
    config: FinetuneConfig,
    data: Data,
    display: Display,
    command: Sequence[str],
    checkpoint: Checkpoint | None,
    trackers: Trackers,
) -> tuple[nn.Module, bool]:
    """Train a model; return it as it trained, and whether it was trained to the end."""
    started = time.perf_counter()
    assert data.train is not None
    assert data.first is not None
    checkpoints = open_folder(config, config.keep, display, resumed=checkpoint is not None)
    saver = Saver(checkpoints, config, config.data, data.digest, trained_only=True)
    records = records_until(saver, checkpoint, display)
    model = prepare(model, config)
    if config.resume_adapter_file is not None:
        load_weights(model, config.resume_adapter_file)
    needed = check_memory(model, config, data.train)
    model = place(model, config)
    for line in _header(model, config, data):
        display.say(line)
    display.say(preview(data.first, tokenizer))
    loop = Finetuning(model, config, data.train, data.valid, display, saver)
    if checkpoint is not None:
        loop.history.records = list(records)
        saver.restore(loop, checkpoint)
    loop.sampler = lambda: sample(model, data.valid or data.train, tokenizer, config.seed)
    record = {
        **first_record(config, command, checkpoint),
        "parameters": count_parameters(model),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "lengths": data.train.lengths(),
        "estimated_memory": None if needed is None else needed / 1e9,
    }

    def finish() -> None:
        if not loop.history.interrupted:
            with loop.aside("projection"):
                record["projection"] = _projection(model, config, loop.train)

    title = f"{config.model}: {describe_device(statistics(model, config))}"
    conduct(loop, records, config.adapter_path, record, title, finish, trackers)
    if not loop.history.interrupted:
        display.say(f"Saved final weights to {config.adapter_path / MLX_WEIGHTS}.")
    display.say(describe_result(loop.history, time.perf_counter() - started))
    display.say(f"Report: {config.adapter_path / REPORT}")
    return model, not loop.history.interrupted


def _projection(model: nn.Module, config: FinetuneConfig, batches: Batches) -> dict[str, Any]:
    """What a batch of the longest rows would take, projected for each chip."""
    settings: Any = model.config
    length = max(batches.lengths())
    tuning = FinetuneConfig(**{name: getattr(config, name) for name in DECIDES})
    setting = Setting(settings.get_text_config(), length, config.batch_size, base_bits=config.base_bits, tuning=tuning)
    return projection(setting, config.chip, config.device)


def _header(model: nn.Module, config: FinetuneConfig, data: Data) -> list[str]:
    assert data.train is not None
    lengths = ", ".join(map(str, data.train.lengths()))
    return [
        "Training",
        *describe_trainable(model),
        f"Device     {describe_device(statistics(model, config))}",
        f"Batches    {len(data.train)} an epoch, of {config.batch_size} rows and {lengths} tokens",
    ]


def _test(model: nn.Module, config: FinetuneConfig, data: Data, display: Display) -> None:
    assert data.test is not None
    loss = evaluate(model, data.test.spread(config.test_batches))
    display.say(f"Test loss {loss:.3f}, Test ppl {math.exp(loss):.3f}.")
