"""The loss of transformers' causal language models as a formula over hidden states instead of logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

#: ``(hidden, weight, target, bias, reduction, ignore_index) -> loss``, with hidden states [tokens, features].
CrossEntropy = Callable[[Tensor, Tensor, Tensor, Tensor | None, str, int], Tensor]


@dataclass(frozen=True)
class NextToken:
    """What a call of a loss function says of the loss, as ``transformers.loss.loss_utils.ForCausalLMLoss`` reads it.

    Attributes:
        labels: [batch, length]. shift_labels: what each position predicts, where that is not the label after it.
        vocab_size: how many logits a position has, if the call says so.
        num_items_in_batch: what the sum of losses is divided by; the number of labelled tokens if None.
        ignore_index: the label of tokens that do not count.
    """

    labels: Tensor
    vocab_size: int | None = None
    num_items_in_batch: Any = None
    ignore_index: int = -100
    shift_labels: Tensor | None = None

    @classmethod
    def parse(cls, logits: Any, labels: Tensor, vocab_size: int | None = None, **named: Any) -> NextToken:
        """Take it from the arguments of the call."""
        names = ("num_items_in_batch", "ignore_index", "shift_labels")
        return cls(labels, vocab_size, **{name: named[name] for name in names if name in named})

    def target(self) -> Tensor:
        """What each position predicts, [batch, length]."""
        if self.shift_labels is not None:
            return self.shift_labels
        return F.pad(self.labels, (0, 1), value=self.ignore_index)[..., 1:]

    def loss(
        self, cross_entropy: CrossEntropy, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
    ) -> Tensor:
        """The loss of hidden states [batch, length, features] that predict ``target`` [batch, length]."""
        reduction = "mean" if self.num_items_in_batch is None else "sum"
        loss = cross_entropy(hidden.flatten(0, 1), weight, target.flatten(), bias, reduction, self.ignore_index)
        return loss if self.num_items_in_batch is None else loss / self.num_items_in_batch
