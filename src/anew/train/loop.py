"""The loop that every kind of training shares: step, validate, report, save, stop when it goes wrong."""

import math
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from anew.energy import Energy, measure
from anew.errors import AnewError, reason_of
from anew.optim import settle
from anew.train.device import Where, statistics
from anew.train.display import Display
from anew.train.memory import peak_memory
from anew.train.metrics import MetricsFile, Record
from anew.train.resume import Saver
from anew.train.trackers import Trackers

# Between regions tensors are fp32 on the host, and regions scale their operands themselves.
LOSS_SCALE = 1.0
#: A loss so many times as large as an untrained model's, in so many steps in a row, will not come back by itself.
EXPLODED, PATIENCE = 2.0, 3


class LoopSettings(Where, Protocol):
    """What the loop asks of a run's settings."""

    @property
    def steps(self) -> int:
        """How many steps the run has."""

    @property
    def val_every(self) -> int:
        """Steps between validations."""

    @property
    def save_every(self) -> int:
        """Steps between checkpoints; 0: only at an interruption and the end."""


@dataclass
class History:
    """The records of a run, the seconds spent in training steps, and by name those spent on anything else so far."""

    records: list[Record] = field(default_factory=list)
    seconds: float = 0.0
    aside: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    interrupted: bool = False

    @property
    def val_losses(self) -> list[float]:
        """Every validation loss, in order."""
        return [r.val_loss for r in self.records if r.val_loss is not None]

    @property
    def steps(self) -> int:
        """Steps taken."""
        return self.records[-1].iteration if self.records else 0


@dataclass(frozen=True)
class Step:
    """What came of one step: mean loss per token, learning rate, gradient norm before clipping, tokens learned from.

    Where gradients are still being accumulated there is no norm yet.
    """

    loss: float
    rate: float
    norm: float | None
    tokens: int


def check_finite(loss: float, norm: float | None, rate_flag: str) -> None:
    """Raise AnewError if a loss or a gradient norm is not finite."""
    if not math.isfinite(loss):
        raise AnewError(f"the loss is {loss}: lower {rate_flag}, or look for a fault in the model or the data")
    if norm is not None and not math.isfinite(norm):
        raise AnewError(f"the gradient norm is {norm} at a loss of {loss:.3f}: lower {rate_flag}, or check the model")


class Loop(ABC):
    """One run of training; what it needs to go on from a step is that step, the model and the optimizer.

    Args:
        model: the model, placed where it computes.
        config: the run's settings.
        optimizer: over the model's parameters that train.
        uniform: the loss of a uniform guess, in nats: the logarithm of the vocabulary's size.
        display: where reports go.
        saver: what saves the run, if anything does.
        metrics: the file of its records, if there is one.
    """

    rate_flag = "--lr"

    def __init__(
        self,
        model: nn.Module,
        config: LoopSettings,
        optimizer: torch.optim.Optimizer,
        uniform: float,
        display: Display,
        saver: Saver | None = None,
        metrics: MetricsFile | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.optimizer = optimizer
        self.uniform = uniform
        self.display = display
        self.metrics = metrics
        self.trackers: Trackers | None = None
        self.saver = saver
        self.history = History()
        self.rescaled_before = 0
        #: What makes a sample of text, if the run is to show some.
        self.sampler: Callable[[], str] | None = None

    @abstractmethod
    def take_step(self, step: int) -> Step:
        """Take step number `step`, counted from 0; raises AnewError, with the weights untouched, if it diverges."""

    @abstractmethod
    def validation_loss(self) -> float | None:
        """Return the mean loss per token of the validation data; None if there is none."""

    def run(self, stop: Callable[[], bool]) -> None:
        """Train to the last step, or until `stop` says so; validate before the first step and after the last.

        It goes on from where the history ends. Raises AnewError that names the step and the last good checkpoint if
        loss or gradient becomes non-finite, the loss explodes, the device fails or memory runs out.
        """
        self.model.train()
        if not self.history.records:
            self._report(0, val_loss=self._validate(0), sample=self._sample(0))
        for step in range(self.history.steps, self.config.steps):
            if stop():
                self.history.interrupted = True
                self._save()
                return
            try:
                self._step(step)
                self._check_loss()
                if step + 1 == self.config.steps:
                    settle(self.optimizer)
            except Exception as error:
                reason = reason_of(error)
                if reason is None:
                    raise
                raise AnewError(f"training stopped in step {step + 1}: {reason}; {self._last_good()}") from error
            done = step + 1
            due = done == self.config.steps or (self.config.save_every and done % self.config.save_every == 0)
            if due and not self._too_large(self.history.records[-1]):
                self._save()

    def _save(self) -> None:
        settle(self.optimizer)
        if self.saver is not None:
            with self.aside("saving"):
                self.saver.save(self)

    @contextmanager
    def aside(self, what: str) -> Iterator[None]:
        """Add the time of a block to that spent besides training steps."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.history.aside[what] += time.perf_counter() - started

    def _last_good(self) -> str:
        saved = self.saver.saved if self.saver is not None else None
        return f"the last good checkpoint is {saved}" if saved else "there is no checkpoint yet"

    def _too_large(self, record: Record) -> bool:
        """Whether a loss is far above an untrained model's: the first one measured, or that of a uniform guess."""
        untrained = max([*self.history.val_losses[:1], self.uniform])
        return record.train_loss is not None and record.train_loss > EXPLODED * untrained

    def _check_loss(self) -> None:
        last = self.history.records[-PATIENCE:]
        if len(last) == PATIENCE and all(map(self._too_large, last)):
            raise AnewError(
                f"the loss explodes, {PATIENCE} steps in a row, to {last[-1].train_loss:.3f}: lower {self.rate_flag}"
            )

    def _step(self, step: int) -> None:
        before = statistics(self.model, self.config).seconds
        with measure() as energy:
            taken = self.take_step(step)
        on_device = statistics(self.model, self.config).seconds - before
        self.history.seconds += energy.seconds
        done = step + 1
        due = done % self.config.val_every == 0 or done == self.config.steps
        val_loss = self._validate(done) if due else None
        self._report(done, taken, energy, on_device, val_loss, self._sample(done) if due else None)

    def _validate(self, iteration: int) -> float | None:
        with self.aside("validation"):
            settle(self.optimizer)
            started = time.perf_counter()
            loss = self.validation_loss()
        if loss is not None:
            self.display.validated(iteration, loss, time.perf_counter() - started)
        return loss

    def _sample(self, iteration: int) -> str | None:
        """Text at the first validation, the second, and then each time the steps have doubled; and at the end."""
        number = iteration // self.config.val_every
        if self.sampler is None or (number & (number - 1) and iteration != self.config.steps):
            return None
        with self.aside("samples"):
            settle(self.optimizer)
            return self.sampler()

    def _report(
        self,
        iteration: int,
        taken: Step | None = None,
        energy: Energy | None = None,
        on_device: float | None = None,
        val_loss: float | None = None,
        sample: str | None = None,
    ) -> None:
        before = self.history.records[-1].trained_tokens if self.history.records else 0
        record = Record(
            iteration=iteration,
            train_loss=taken.loss if taken else None,
            val_loss=val_loss,
            learning_rate=taken.rate if taken else None,
            grad_norm=taken.norm if taken else None,
            seconds=energy.seconds if energy else None,
            tokens_per_second=taken.tokens / energy.seconds if taken and energy else None,
            trained_tokens=before + (taken.tokens if taken else 0),
            loss_scale=LOSS_SCALE,
            rescaled=self.rescaled_before + statistics(self.model, self.config).rescaled,
            peak_memory=peak_memory(),
            joules=energy.joules if energy and energy.total is not None else None,
            device_seconds=on_device,
            sample=sample,
        )
        self.history.records.append(record)
        if self.metrics is not None:
            self.metrics.write(record)
        if self.trackers is not None:
            self.trackers.write(record)
        if taken is not None:
            self.display.stepped(record)
