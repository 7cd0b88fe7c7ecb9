"""Training a language model on text windows: accumulate, clip, step; the loss of the held-out windows."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from anew.frontend.ranks import share_scales
from anew.optim import clip_norm
from anew.train.config import TrainConfig
from anew.train.data import Batch, ValidationBatch, Windows
from anew.train.display import Display
from anew.train.loop import Loop, Step, check_finite
from anew.train.metrics import MetricsFile
from anew.train.optimizer import learning_rate, make_optimizer
from anew.train.ranks import Ranks
from anew.train.resume import Saver

#: The target of a token that does not count.
IGNORED = -100
#: A run of one process.
ALONE = Ranks()


def mean_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of the tokens that count, fp32; inputs and targets are [batch, seq_len].

    The model itself computes it, so that its head and loss run on the engine. Targets of -100 do not count.
    """
    loss: Tensor = model(input_ids=inputs, labels=targets, shift_labels=targets).loss
    return loss


@torch.no_grad()
def evaluate(model: nn.Module, batches: Sequence[ValidationBatch], ranks: Ranks = ALONE) -> float:
    """Return the mean loss per token over the rows that count; the model comes back in training mode.

    Each process takes its share of the batches.
    """
    model.eval()
    total, tokens = 0.0, 0
    for batch in batches[ranks.index :: ranks.count]:
        targets = batch.targets.clone()
        targets[batch.real :] = IGNORED
        count = targets[: batch.real].numel()
        total += count * mean_loss(model, batch.inputs, targets).double().item()
        tokens += count
    model.train()
    total, tokens_in_all = ranks.sum(total, tokens)
    return total / tokens_in_all


def accumulate(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Add to `.grad` the gradient of the mean loss over all batches (of one shape), and return that loss."""
    total = 0.0
    for number, (inputs, targets) in enumerate(batches, 1):
        with _apart(model) if number < len(batches) else nullcontext():
            loss = mean_loss(model, inputs, targets)
            (loss / len(batches)).backward()
        total += loss.item()
    return total / len(batches)


def _apart(model: nn.Module) -> AbstractContextManager[None]:
    """Leave gradients in their process: they travel with those of the last batch."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    grad_clip: float,
    ranks: Ranks = ALONE,
) -> tuple[float, float]:
    """Take one optimizer step over the batches of all processes; return loss and gradient norm before clipping.

    A `grad_clip` of 0 clips nothing. Raises AnewError, with the weights untouched, if either is not finite: in every
    process, as all of them see the same two numbers.
    """
    optimizer.zero_grad(set_to_none=True)
    loss = ranks.mean(accumulate(model, batches))
    norm = clip_norm(optimizer, model.parameters(), grad_clip)
    check_finite(loss, norm, Pretraining.rate_flag)
    optimizer.step()
    return loss, norm


class Pretraining(Loop):
    """The loop of ``anew train``."""

    config: TrainConfig

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        windows: Windows,
        validation: Sequence[ValidationBatch],
        display: Display,
        saver: Saver | None = None,
        metrics: MetricsFile | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        engine = config.device != "cpu" and ranks.count == 1
        optimizer = make_optimizer(model, config.weight_decay, engine=engine)
        super().__init__(model, config, optimizer, math.log(config.model["vocab_size"]), display, saver, metrics)
        self.windows = windows
        self.validation = validation
        self.ranks = ranks
        self.parallel = ranks.parallel(model)

    def take_step(self, step: int) -> Step:
        """Accumulate the gradients of this process's part of the step's batches and step the optimizer."""
        config, ranks = self.config, self.ranks
        rate = learning_rate(step, config.steps, config.lr, config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        first = step * config.grad_accum
        numbers = [(first + i) * ranks.count + ranks.index for i in range(config.grad_accum)]
        batches = [self.windows.batch(number, config.batch_size) for number in numbers]
        loss, norm = train_step(self.parallel, self.optimizer, batches, config.grad_clip, ranks)
        if ranks.count > 1 and config.device != "cpu":
            share_scales(self.model)
        self.optimizer.zero_grad(set_to_none=True)  # neither validation nor a checkpoint has use for gradients
        return Step(loss, rate, norm, config.tokens_per_step)

    def validation_loss(self) -> float:
        """Return the mean loss per token of the held-out windows."""
        return evaluate(self.model, self.validation, self.ranks)
