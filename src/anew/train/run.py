"""One training run from text to trained model: the order of events, and what is left in the output folder."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from anew.errors import UserError
from anew.estimate.counted import Setting
from anew.estimate.run import projection
from anew.llama2c import read_tokens
from anew.llama2c.tokens import SUFFIX as TOKEN_FILE
from anew.report import REPORT
from anew.train.checkpoint import Checkpoint
from anew.train.conduct import conduct, describe_result, first_record, open_folder, records_until, train
from anew.train.config import TrainConfig
from anew.train.data import Windows, read_documents, split, training_part, validation_batches
from anew.train.device import describe_device, place, statistics
from anew.train.display import Display
from anew.train.estimate import check_memory
from anew.train.generate import NEW_TOKENS, decode, generate, printable, prompt_from
from anew.train.initial import load_weights
from anew.train.loop import History
from anew.train.memory import keep_freed_memory
from anew.train.model import build_model, count_parameters, describe_model, save_model
from anew.train.pretraining import ALONE, Pretraining
from anew.train.ranks import Ranks
from anew.train.resume import Saver
from anew.train.tokenizer import encode, load_tokenizer, train_tokenizer
from anew.train.trackers import Trackers

VALIDATION_BATCHES = 8
SHOWN_SAMPLES = 2
#: Length of the samples while the model trains: enough to see it learn, and little beside a validation.
SAMPLE_TOKENS = 20


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


def run(
    config: TrainConfig,
    display: Display,
    command: Sequence[str],
    checkpoint: Checkpoint | None = None,
    ranks: Ranks = ALONE,
) -> bool:
    """Train as configured and leave everything in `config.out`; return False if the user interrupted.

    The first of several processes (`ranks`, which have joined) writes it. With a `checkpoint` of that folder it goes
    on from there, and metrics.jsonl after its step is written anew. Raises AnewError for bad input, for training that
    diverges and for a full disk. Whatever happens once training has begun, metrics.jsonl, loss.png, run.json and
    report.html are written if the disk takes them.
    """
    started = time.perf_counter()
    kept = keep_freed_memory()
    trackers = Trackers.of(config if ranks.first else replace(config, report_to=None))
    _quiet_transformers()
    resumed = checkpoint is not None
    checkpoints = open_folder(config, config.keep, display, resumed=resumed or not ranks.first)
    needed = check_memory(config)
    corpus = _share_corpus(config, display, resumed, ranks)
    saver = Saver(checkpoints, config, str(config.data), corpus.digest, writes=ranks.first)
    records = records_until(saver, checkpoint, display)
    model = build_model(config.model, corpus.tokenizer, config.seed)
    if config.init_from is not None and checkpoint is None:
        load_weights(model, config.init_from)
    model = place(model, config)
    for line in _header(config, corpus, model):
        display.say(line)
    record = {
        **first_record(config, command, checkpoint),
        "parameters": count_parameters(model),
        "tokens": {"train": len(corpus.train), "validation": len(corpus.validation)},
        "estimated_memory": None if needed is None else needed / 1e9,
        "freed_memory_kept": kept,
    }
    loop = _make_loop(model, config, corpus, display, saver, ranks)
    if checkpoint is not None:
        loop.history.records = list(records)
        saver.restore(loop, checkpoint)
    if not ranks.first:
        train(loop, ranks.any)
        return not loop.history.interrupted

    def finish() -> None:
        save_model(model, corpus.tokenizer, config.out / "model")
        if not loop.history.interrupted:
            record["sample"] = _show_samples(model, corpus, config, display)
            with loop.aside("projection"):
                settings: Any = model.config
                setting = Setting(settings, config.seq_len, config.batch_size)
                record["projection"] = projection(setting, config.chip, config.device)

    title = f"{config.name}: {describe_device(statistics(model, config))}"
    conduct(loop, records, config.out, record, title, finish, trackers, ranks.any)
    for line in _summary(config, loop.history, time.perf_counter() - started):
        display.say(line)
    return not loop.history.interrupted


def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _share_corpus(config: TrainConfig, display: Display, resumed: bool, ranks: Ranks) -> Corpus:
    """The corpus in every process: the first one trains the tokenizer, if there is none, and the others read it."""
    if ranks.first:
        corpus = _load_corpus(config, display, resumed)
        ranks.wait()
        return corpus
    ranks.wait()
    return _load_corpus(config, display, resumed=True)


def _load_corpus(config: TrainConfig, display: Display, resumed: bool) -> Corpus:
    vocab_size = config.model["vocab_size"]
    own = config.out / "tokenizer.json"
    if config.data.suffix == TOKEN_FILE:
        if config.tokenizer is None:
            raise UserError(f"{config.data} holds tokens: give --tokenizer, the one that made them")
        corpus = Corpus(load_tokenizer(config.tokenizer), *split(read_tokens(config.data, vocab_size), config.seq_len))
        # The ids of the file fit; those that the tokenizer gives for the samples must too, known before hours of work.
        prompt = _prompt(corpus, config)
        if not prompt:
            raise UserError(f"{config.tokenizer} did not make the tokens of {config.data}: it decodes them to nothing")
        encode(corpus.tokenizer, [prompt], vocab_size)
        return corpus
    documents = read_documents(config.data)
    if config.tokenizer is not None or resumed:
        tokenizer = load_tokenizer(config.tokenizer or own)
    else:
        display.say(f"Training a tokenizer of up to {vocab_size} pieces")
        tokenizer = train_tokenizer(training_part(documents), vocab_size, own)
    tokens = encode(tokenizer, documents, vocab_size)
    return Corpus(tokenizer, *split(tokens, config.seq_len))


def _make_loop(
    model: nn.Module, config: TrainConfig, corpus: Corpus, display: Display, saver: Saver, ranks: Ranks
) -> Pretraining:
    windows = Windows(corpus.train, config.seq_len, config.seed)
    most = VALIDATION_BATCHES * ranks.count
    held_out = validation_batches(corpus.validation, config.seq_len, config.batch_size, most)
    loop = Pretraining(model, config, windows, held_out, display, saver, ranks=ranks)
    if ranks.count == 1:  # what one process alone computes would not reach the operand scales of the others
        loop.sampler = lambda: _sample(model, corpus, config, SAMPLE_TOKENS)[0]
    return loop


def _header(config: TrainConfig, corpus: Corpus, model: nn.Module) -> list[str]:
    source = "trained on this data" if config.tokenizer is None else str(config.tokenizer)
    counters = statistics(model, config)
    return [
        f"Model      {config.name}: {describe_model(model)}"
        + (f", from {config.init_from}" if config.init_from else ""),
        f"Data       {config.data}: {len(corpus.train):,} tokens to train on, "
        f"{len(corpus.validation):,} to validate on",
        f"Tokenizer  {len(corpus.tokenizer)} pieces, {source}",
        f"Device     {describe_device(counters)}",
        *([f"           {counters.why}"] if counters.why else []),
        f"Run        {config.steps} steps of {config.tokens_per_step} tokens "
        f"({config.batch_size} x {config.seq_len}, accumulated {config.grad_accum} x{_processes(config)}), "
        f"learning rate {config.lr:g}, seed {config.seed}",
    ]


def _processes(config: TrainConfig) -> str:
    return f", {config.processes} processes" if config.processes > 1 else ""


def _prompt(corpus: Corpus, config: TrainConfig) -> str:
    return prompt_from(corpus.tokenizer.decode(corpus.validation[: config.seq_len].tolist()))


def _show_samples(model: nn.Module, corpus: Corpus, config: TrainConfig, display: Display) -> dict[str, Any]:
    """Print text that continues the first words of the validation part, and return it for run.json."""
    prompt, texts = _prompt(corpus, config), _sample(model, corpus, config)
    display.say(f"\nThe trained model goes on from: {printable(prompt)}")
    for text in texts:
        display.say(f"\n> {printable(text.strip())}")
    return {"prompt": prompt, "texts": texts}


def _sample(model: nn.Module, corpus: Corpus, config: TrainConfig, new_tokens: int = NEW_TOKENS) -> list[str]:
    """Return texts that continue the first words of the validation part."""
    tokenizer = corpus.tokenizer
    ids = torch.tensor(tokenizer(_prompt(corpus, config), add_special_tokens=False)["input_ids"], dtype=torch.int64)
    vocab_size = min(len(tokenizer), config.model["vocab_size"])
    rows = generate(model, ids, config.batch_size, config.seq_len, vocab_size, config.seed, new_tokens)
    return [decode(tokenizer, row) for row in rows[:SHOWN_SAMPLES]]


def _summary(config: TrainConfig, history: History, seconds: float) -> list[str]:
    return [
        "",
        describe_result(history, seconds),
        f"Model: {config.out / 'model'}   Curve: {config.out / 'loss.png'}   "
        f"Metrics: {config.out / 'metrics.jsonl'}   Record: {config.out / 'run.json'}",
        f"Report: {config.out / REPORT}",
    ]
