"""One training run from text to trained model: the order of events, and what is left in the output folder."""

import dataclasses
import hashlib
import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from anew.errors import UserError
from anew.train.checkpoint import Checkpoint, Checkpoints, step_of
from anew.train.config import TrainConfig
from anew.train.data import Windows, read_documents, split, training_part, validation_batches
from anew.train.device import describe_device, place, statistics
from anew.train.display import Display
from anew.train.estimate import check_memory
from anew.train.generate import decode, generate, prompt_from
from anew.train.interrupt import stop_on_interrupt
from anew.train.loop import History, Loop
from anew.train.memory import keep_freed_memory, peak_memory
from anew.train.metrics import MetricsFile, read_records
from anew.train.model import build_model, count_parameters, describe_model, save_model
from anew.train.plot import plot_losses
from anew.train.record import machine, versions, write_json
from anew.train.resume import Saver, begin
from anew.train.tokenizer import encode, load_tokenizer, train_tokenizer

VALIDATION_BATCHES = 8
SHOWN_SAMPLES = 2
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Corpus:
    """The data of a run as token ids (1-D), and the tokenizer that made them."""

    tokenizer: Any
    train: np.ndarray
    validation: np.ndarray

    @property
    def digest(self) -> str:
        """SHA-256 of the tokens: what the run learns from, wherever it lies."""
        return hashlib.sha256(self.train.tobytes() + b"|" + self.validation.tobytes()).hexdigest()


def run(config: TrainConfig, display: Display, command: Sequence[str], checkpoint: Checkpoint | None = None) -> bool:
    """Train as configured and leave everything in `config.out`; return False if the user interrupted.

    With a `checkpoint` of that folder it goes on from there, and metrics.jsonl after its step is written anew. Raises
    AnewError for bad input, for training that diverges and for a full disk. Whatever happens once training has begun,
    metrics.jsonl, loss.png and run.json are written if the disk takes them.
    """
    started = time.perf_counter()
    kept = keep_freed_memory()
    _quiet_transformers()
    _make_folder(config.out)
    checkpoints = Checkpoints(config.out, config.keep)
    for path in checkpoints.partial():
        display.say(f"Ignored    {path}: half-written by a run that was killed; the next save removes it")
    if checkpoint is None:
        begin(checkpoints)
    needed = check_memory(config)
    corpus = _load_corpus(config, display, resumed=checkpoint is not None)
    saver = Saver(checkpoints, config, corpus.digest)
    records = []
    if checkpoint is not None:
        said = saver.check(checkpoint)
        display.say(said or f"Resuming   {checkpoint.path}")
        records = read_records(config.out / METRICS, step_of(checkpoint.path))
    model = place(build_model(config.model, corpus.tokenizer, config.seed), config)
    for line in _header(config, corpus, model):
        display.say(line)
    record: dict[str, Any] = {
        "command": shlex.join(command),
        "status": "failed",
        "config": config.as_json(),
        "parameters": count_parameters(model),
        "tokens": {"train": len(corpus.train), "validation": len(corpus.validation)},
        "resumed_from": None if checkpoint is None else step_of(checkpoint.path),
        "estimated_memory": None if needed is None else needed / 1e9,
        "versions": versions(),
        "machine": {**machine(), "freed_memory_kept": kept},
    }
    loop = _make_loop(model, config, corpus, display, saver)
    if checkpoint is not None:
        loop.history.records = records
        saver.restore(loop, checkpoint)
    with MetricsFile(config.out / METRICS, records) as metrics:
        loop.metrics = metrics
        try:
            _train(loop, display)
            save_model(model, corpus.tokenizer, config.out / "model")
            record["status"] = "interrupted" if loop.history.interrupted else "finished"
            if not loop.history.interrupted:
                record["sample"] = _show_samples(model, corpus, config, display)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                record["status"] = "interrupted"
            with suppress(OSError):  # a full disk may be what went wrong
                _leave_record(loop, record, started)
            raise
        _leave_record(loop, record, started)
    for line in _summary(config, loop.history, time.perf_counter() - started):
        display.say(line)
    return not loop.history.interrupted


def _leave_record(loop: Loop, record: dict[str, Any], started: float) -> None:
    config, counters = loop.config, statistics(loop.model, loop.config)
    plot_losses(loop.history.records, f"{config.name}: {describe_device(counters)}", _plot(config))
    record.update(_results(loop.history, counters, time.perf_counter() - started))
    write_json(config.out / "run.json", record)


def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path} for --out: {error.strerror}") from error


def _load_corpus(config: TrainConfig, display: Display, resumed: bool) -> Corpus:
    documents = read_documents(config.data)
    vocab_size = config.model["vocab_size"]
    own = config.out / "tokenizer.json"
    if config.tokenizer is not None or resumed:
        tokenizer = load_tokenizer(config.tokenizer or own)
    else:
        display.say(f"Training a tokenizer of up to {vocab_size} pieces")
        tokenizer = train_tokenizer(training_part(documents), vocab_size, own)
    tokens = encode(tokenizer, documents, vocab_size)
    return Corpus(tokenizer, *split(tokens, config.seq_len))


def _make_loop(model: nn.Module, config: TrainConfig, corpus: Corpus, display: Display, saver: Saver) -> Loop:
    windows = Windows(corpus.train, config.seq_len, config.seed)
    held_out = validation_batches(corpus.validation, config.seq_len, config.batch_size, VALIDATION_BATCHES)
    return Loop(model, config, windows, held_out, display, saver)


def _train(loop: Loop, display: Display) -> None:
    display.start(loop.config.steps, loop.config.tokens_per_step)
    try:
        with stop_on_interrupt() as stop:
            loop.run(stop)
    finally:
        display.stop()


def _header(config: TrainConfig, corpus: Corpus, model: nn.Module) -> list[str]:
    source = "trained on this data" if config.tokenizer is None else str(config.tokenizer)
    counters = statistics(model, config)
    return [
        f"Model      {config.name}: {describe_model(model)}",
        f"Data       {config.data}: {len(corpus.train):,} tokens to train on, "
        f"{len(corpus.validation):,} to validate on",
        f"Tokenizer  {len(corpus.tokenizer)} pieces, {source}",
        f"Device     {describe_device(counters)}",
        *([f"           {counters.why}"] if counters.why else []),
        f"Run        {config.steps} steps of {config.tokens_per_step} tokens "
        f"({config.batch_size} x {config.seq_len}, accumulated {config.grad_accum} x), "
        f"learning rate {config.lr:g}, seed {config.seed}",
    ]


def _show_samples(model: nn.Module, corpus: Corpus, config: TrainConfig, display: Display) -> dict[str, Any]:
    """Print text that continues the first words of the validation part, and return it for run.json."""
    tokenizer = corpus.tokenizer
    prompt = prompt_from(tokenizer.decode(corpus.validation[: config.seq_len].tolist()))
    ids = torch.tensor(tokenizer(prompt, add_special_tokens=False)["input_ids"], dtype=torch.int64)
    vocab_size = min(len(tokenizer), config.model["vocab_size"])
    rows = generate(model, ids, config.batch_size, config.seq_len, vocab_size, config.seed)
    texts = [decode(tokenizer, row) for row in rows[:SHOWN_SAMPLES]]
    display.say(f"\nThe trained model goes on from: {prompt}")
    for text in texts:
        display.say(f"\n> {text.strip()}")
    return {"prompt": prompt, "texts": texts}


def _results(history: History, counters: Any, seconds: float) -> dict[str, Any]:
    losses = history.val_losses
    return {
        "device": counters.device,
        "emulated": counters.emulated,
        "steps": history.steps,
        "first_val_loss": losses[0] if losses else None,
        "last_val_loss": losses[-1] if losses else None,
        "seconds": {"total": round(seconds, 3), "training": round(history.seconds, 3)},
        "peak_memory": peak_memory(),
        "programs": counters.programs,
        "dispatches": counters.dispatches,
        "rescaled": counters.rescaled,
        "statistics": dataclasses.asdict(counters),
    }


def _summary(config: TrainConfig, history: History, seconds: float) -> list[str]:
    first, last = history.val_losses[0], history.val_losses[-1]
    return [
        "",
        f"Validation loss {first:.3f} -> {last:.3f} ({100 * (last - first) / first:+.0f} %) "
        f"in {history.steps} steps; {history.seconds:.1f} s of training, {seconds:.1f} s in all",
        f"Model: {config.out / 'model'}   Curve: {_plot(config)}   "
        f"Metrics: {config.out / 'metrics.jsonl'}   Record: {config.out / 'run.json'}",
    ]


def _plot(config: TrainConfig) -> Path:
    return config.out / "loss.png"
