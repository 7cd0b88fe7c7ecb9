"""The loop of ``anew finetune``: one batch a step, the optimizer after every so many of them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from anew.adapters import save_adapter
from anew.adapters.forms import MLX_WEIGHTS
from anew.finetune.batches import Batch, Batches
from anew.finetune.check import FirstSave
from anew.finetune.optimizer import make_optimizer
from anew.finetune.options import FinetuneConfig
from anew.finetune.schedule import build_schedule
from anew.optim import clip_norm, settle
from anew.train.device import check_baked
from anew.train.display import Display
from anew.train.loop import Loop, Step, check_finite
from anew.train.resume import Saver


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Return the mean loss per token that the loss counts, in nats; the model comes back in the mode it was in."""
    training = model.training
    model.eval()
    total, tokens = 0.0, 0
    for batch in batches:
        total += model(**batch.arguments).loss.item() * batch.tokens
        tokens += batch.tokens
    model.train(training)
    return total / tokens


class Finetuning(Loop):
    """The loop of ``anew finetune``.

    Args:
        model: as :func:`anew.finetune.adapt.adapt` made it, placed where it computes.
        config: the run's settings.
        train: what to learn from.
        validation: what to validate on, if there is anything.
        display: where reports go.
        saver: what saves checkpoints.
    """

    rate_flag = "--learning-rate"
    config: FinetuneConfig

    def __init__(
        self,
        model: nn.Module,
        config: FinetuneConfig,
        train: Batches,
        validation: Batches | None,
        display: Display,
        saver: Saver | None = None,
    ) -> None:
        self.schedule = build_schedule(config.lr_schedule, config.learning_rate)
        engine = config.device != "cpu"
        optimizer = make_optimizer(model, config.optimizer, config.optimizer_config, self.schedule(0), engine=engine)
        vocabulary: int = model.config.get_text_config().vocab_size  # type: ignore[operator, union-attr]
        super().__init__(model, config, optimizer, math.log(vocabulary), display, saver)
        self.train = train
        self.validation = validation
        self.first_save = FirstSave(model)

    def take_step(self, step: int) -> Step:
        """Add the gradient of one batch, and step the optimizer if it was the last of its group."""
        config, batch = self.config, self.train.at(step, self.config.seed)
        first = step - step % config.grad_accumulation_steps
        group = min(config.grad_accumulation_steps, config.iters - first)  # the last may be smaller
        rate = self.schedule(step // config.grad_accumulation_steps)
        loss = self.model(**batch.arguments).loss
        (loss / group).backward()
        norm = self._update(loss.item(), rate) if step + 1 == first + group else None
        check_finite(loss.item(), norm, self.rate_flag)
        if (step + 1) % config.steps_per_report == 0:
            check_baked(self.model, config)
        return Step(loss.item(), rate, norm, batch.tokens)

    def _update(self, loss: float, rate: float) -> float:
        norm = clip_norm(self.optimizer, self.config.max_grad_norm)
        check_finite(loss, norm, self.rate_flag)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.first_save.updated |= rate > 0
        return norm

    def validation_loss(self) -> float | None:
        """Return the mean loss of up to ``val_batches`` batches; None without validation data."""
        check_baked(self.model, self.config)
        return evaluate(self.model, self.validation.spread(self.config.val_batches)) if self.validation else None

    def _save(self) -> None:
        """Check at the first save what trained, then write the adapters and the checkpoint."""
        settle(self.optimizer)
        said = self.first_save.check(self.model, self.train.at(0, self.config.seed).arguments["input_ids"])
        if said:
            self.display.say(said)
        check_baked(self.model, self.config)
        step, folder = self.history.steps, self.config.adapter_path
        save_adapter(self.model, folder, settings=self.config.as_json(), step=step)
        super()._save()
        self.display.say(
            f"Iter {step}: Saved adapter weights to {folder / MLX_WEIGHTS} and {folder / f'{step:07d}_{MLX_WEIGHTS}'}."
        )
