"""The loss region in a causal language model of transformers: its head defers the logits, its loss takes them over.

The model's own ``forward`` runs unchanged. Its head returns :class:`DeferredLogits`; if they reach the model's loss
function untouched, and a check has shown that this function is the cross-entropy of the next token, loss and gradients
come from the loss region. Logits that a model caps or scales on the way are computed by that very operation, and the
model's own loss goes on with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anew.frontend.held import wait_for
from anew.frontend.loss.check import PENDING, LossVerdict, check
from anew.frontend.loss.deferred import DeferredLogits, DeferringHead
from anew.frontend.loss.function import cross_entropy
from anew.frontend.loss.next_token import NextToken
from anew.frontend.loss.region import LossRegion, loss_region
from anew.frontend.session import Session

TOUCHED = LossVerdict(False, "the model uses or changes its logits between head and loss")


class CausalLoss:
    """What a model's ``loss_function`` becomes. A copy or a pickle of it is the model's own function again.

    Attributes:
        own: the model's own function.
        verdict: whether the loss region is used.
    """

    def __init__(self, own: Callable[..., Tensor], region: LossRegion) -> None:
        self.own = own
        self.region = region
        self.verdict = PENDING

    def __reduce__(self) -> Any:
        return _itself, (self.own,)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss; arguments as the model's own function takes them."""
        logits = args[0] if args else kwargs.get("logits")
        if not isinstance(logits, DeferredLogits) or logits.is_computed:
            if self.verdict is PENDING:
                self.verdict = TOUCHED
            return self.own(*args, **kwargs)
        call = NextToken.parse(*args, **kwargs)
        hidden, head = logits.hidden, logits.head
        if self.verdict.used is False or not _fits(call, logits):
            return self.own(*args, **kwargs)
        if self.verdict is PENDING:
            wait_for(head.weight)
            self.verdict = check(self.region, _with_other_data(self.own, args, kwargs), call, hidden, head)
            if not self.verdict.used:
                return self.own(*args, **kwargs)
        return call.loss(
            lambda *operands: cross_entropy(self.region, *operands), hidden, head.weight, head.bias, call.target()
        )


def _itself(x: Any) -> Any:
    return x


def _fits(call: NextToken, logits: DeferredLogits) -> bool:
    """Whether each position of a batch has a logit for every label; other calls are the model's own business."""
    *positions, vocabulary = logits.shape
    return logits.dim() == 3 and list(call.target().shape) == positions and call.vocab_size in (None, vocabulary)


def _with_other_data(own: Callable[..., Tensor], args: Any, kwargs: Any) -> Callable[..., Tensor]:
    """The loss function as one of logits, labels and shift_labels alone; what else it was called with stays."""

    def call(logits: Tensor, labels: Tensor, shift_labels: Tensor | None) -> Tensor:
        data = {"logits": logits, "labels": labels}
        first = [data.pop(name) for name, _ in zip(tuple(data), args, strict=False)]
        shift = {} if shift_labels is None else {"shift_labels": shift_labels}
        return own(*first, *args[len(first) :], **(kwargs | data | shift))

    return call


def attach(model: nn.Module, session: Session) -> None:
    """Give the causal language model in ``model``, if there is one, the loss region of a session, in place."""
    found = _causal_lm(model)
    if found is None:
        return
    own = found.loss_function
    loss = CausalLoss(own.own if isinstance(own, CausalLoss) else own, loss_region(session))
    head = found.get_output_embeddings()
    if type(head) not in (nn.Linear, DeferringHead) or head.weight.dtype != torch.float32:
        loss.verdict = LossVerdict(
            False, f"the head is {type(head).__name__} in {head.weight.dtype}, no fp32 nn.Linear"
        )
    else:
        head.__class__ = DeferringHead
    found.loss_function = loss


def verdict_of(model: nn.Module) -> LossVerdict | None:
    """Whether a compiled model's loss comes from the loss region; None if it has no loss of its own."""
    loss = _loss_of(model)
    return loss.verdict if loss else None


def set_verdict(model: nn.Module, verdict: LossVerdict) -> None:
    """Take over what a check found in another process; nothing happens for a model without a loss of its own."""
    loss = _loss_of(model)
    if loss:
        loss.verdict = verdict if verdict.used is not None else PENDING  # which is known by identity


def _loss_of(model: nn.Module) -> CausalLoss | None:
    loss = getattr(_causal_lm(model), "loss_function", None)
    return loss if isinstance(loss, CausalLoss) else None


def _causal_lm(model: nn.Module) -> Any:
    """The module that has both a loss function and an output embedding, under any wrapper such as PEFT's."""
    for module in model.modules():
        own = getattr(type(module), "loss_function", None)  # a property with a setter, in transformers
        if isinstance(own, property) and hasattr(type(module), "get_output_embeddings"):
            head: Any = module.get_output_embeddings()  # type: ignore[operator]
            if isinstance(head, nn.Module):
                return module
    return None
