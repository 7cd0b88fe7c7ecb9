"""The training loop: accumulate, clip, step, validate, report."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anew.errors import AnewError
from anew.train.config import TrainConfig
from anew.train.data import Batch, ValidationBatch, Windows
from anew.train.device import statistics
from anew.train.display import Display
from anew.train.memory import peak_memory
from anew.train.metrics import MetricsFile, Record
from anew.train.optimizer import learning_rate, make_optimizer
from anew.train.resume import Saver

# Between regions tensors are fp32 on the host, and regions scale their operands themselves.
LOSS_SCALE = 1.0
#: A loss so many times as large as an untrained model's, in so many steps in a row, will not come back by itself.
EXPLODED, PATIENCE = 2.0, 3


@dataclass
class History:
    """The records of a run, and the seconds spent in training steps (without validation)."""

    records: list[Record] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def val_losses(self) -> list[float]:
        """Every validation loss, in order."""
        return [r.val_loss for r in self.records if r.val_loss is not None]

    @property
    def steps(self) -> int:
        """Optimizer steps taken."""
        return self.records[-1].iteration if self.records else 0


def token_losses(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each token, fp32; inputs, targets and result are [batch, seq_len]."""
    logits = model(input_ids=inputs).logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Sequence[ValidationBatch]) -> float:
    """Return the mean loss per token over the rows that count; the model comes back in training mode."""
    model.eval()
    total = 0.0
    for batch in batches:
        total += token_losses(model, batch.inputs, batch.targets)[: batch.real].double().sum().item()
    model.train()
    return total / sum(batch.targets[: batch.real].numel() for batch in batches)


def accumulate(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Add to `.grad` the gradient of the mean loss over all batches (of one shape), and return that loss."""
    total = 0.0
    for inputs, targets in batches:
        loss = token_losses(model, inputs, targets).mean()
        (loss / len(batches)).backward()
        total += loss.item()
    return total / len(batches)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Sequence[Batch], grad_clip: float
) -> tuple[float, float]:
    """Take one optimizer step over all batches; return the loss and the gradient norm before clipping.

    A `grad_clip` of 0 clips nothing. Raises AnewError, with the weights untouched, if either is not finite.
    """
    optimizer.zero_grad(set_to_none=True)
    loss = accumulate(model, batches)
    if not math.isfinite(loss):
        raise AnewError(f"the loss is {loss}: lower --lr, or look for a fault in the model or the data")
    norm = nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf).item()
    if not math.isfinite(norm):
        raise AnewError(f"the gradient norm is {norm} at a loss of {loss:.3f}: lower --lr, or check the model")
    optimizer.step()
    return loss, norm


class Loop:
    """One run of training; what it needs to go on from a step is that step, the model and the optimizer."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        windows: Windows,
        validation: Sequence[ValidationBatch],
        display: Display,
        saver: Saver | None = None,
        metrics: MetricsFile | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.windows = windows
        self.validation = validation
        self.display = display
        self.metrics = metrics
        self.saver = saver
        self.optimizer = make_optimizer(model, config.weight_decay)
        self.history = History()
        self.rescaled_before = 0

    def run(self, stop: Callable[[], bool]) -> None:
        """Train to the last step, or until `stop` says so; validate before the first step and after the last.

        It goes on from where the history ends. Raises AnewError that names the step and the last good checkpoint if
        loss or gradient becomes non-finite, or the loss explodes.
        """
        self.model.train()
        if not self.history.records:
            self._report(0, val_loss=self._validate(0))
        for step in range(self.history.steps, self.config.steps):
            if stop():
                self.history.interrupted = True
                self._save()
                return
            try:
                self._step(step)
                self._check_loss()
            except AnewError as error:
                raise AnewError(f"training stopped in step {step + 1}: {error}; {self._last_good()}") from error
            done = step + 1
            due = done == self.config.steps or (self.config.save_every and done % self.config.save_every == 0)
            if due and not self._too_large(self.history.records[-1]):
                self._save()

    def _save(self) -> None:
        if self.saver is not None:
            self.saver.save(self)

    def _last_good(self) -> str:
        saved = self.saver.saved if self.saver is not None else None
        return f"the last good checkpoint is {saved}" if saved else "there is no checkpoint yet"

    def _too_large(self, record: Record) -> bool:
        """Whether a loss is far above an untrained model's: the first one measured, or that of a uniform guess."""
        untrained = max(self.history.val_losses[0], math.log(self.config.model["vocab_size"]))
        return record.train_loss is not None and record.train_loss > EXPLODED * untrained

    def _check_loss(self) -> None:
        last = self.history.records[-PATIENCE:]
        if len(last) == PATIENCE and all(map(self._too_large, last)):
            raise AnewError(f"the loss explodes, {PATIENCE} steps in a row, to {last[-1].train_loss:.3f}: lower --lr")

    def _step(self, step: int) -> None:
        config = self.config
        rate = learning_rate(step, config.steps, config.lr, config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        started = time.perf_counter()
        first = step * config.grad_accum
        batches = [self.windows.batch(first + i, config.batch_size) for i in range(config.grad_accum)]
        loss, norm = train_step(self.model, self.optimizer, batches, config.grad_clip)
        seconds = time.perf_counter() - started
        self.history.seconds += seconds
        done = step + 1
        due = done % config.val_every == 0 or done == config.steps
        val_loss = self._validate(done) if due else None
        self._report(done, loss, val_loss, rate, norm, config.tokens_per_step / seconds)

    def _validate(self, iteration: int) -> float:
        started = time.perf_counter()
        loss = evaluate(self.model, self.validation)
        self.display.validated(iteration, loss, time.perf_counter() - started)
        return loss

    def _report(
        self,
        iteration: int,
        train_loss: float | None = None,
        val_loss: float | None = None,
        rate: float | None = None,
        norm: float | None = None,
        tokens_per_second: float | None = None,
    ) -> None:
        rescaled = self.rescaled_before + statistics(self.model, self.config).rescaled
        record = Record(
            iteration, train_loss, val_loss, rate, norm, tokens_per_second, LOSS_SCALE, rescaled, peak_memory()
        )
        self.history.records.append(record)
        if self.metrics is not None:
            self.metrics.write(record)
        if train_loss is not None:
            self.display.stepped(record)
