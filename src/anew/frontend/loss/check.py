"""Whether a model's loss is the cross-entropy of its next token: loss and gradients of a part of one batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anew.compiler.lowering import NotLowered
from anew.frontend.loss.function import cross_entropy
from anew.frontend.loss.next_token import NextToken
from anew.frontend.loss.region import LossRegion

#: Most tokens that the check compares.
TOKENS = 256
#: Largest relative difference of loss and gradients between the model's own loss and the formula, both in fp32.
SAME = 1e-4
#: The same between the formula and the engine.
CLOSE = 0.05


@dataclass(frozen=True)
class LossVerdict:
    """Whether a model's loss comes from the loss region, and why.

    Attributes:
        used: None until a batch has been checked. reason: a sentence.
    """

    used: bool | None
    reason: str


PENDING = LossVerdict(None, "no batch with labels has been checked yet")
SAME_LOSS = LossVerdict(True, "a batch gave the model's own loss and gradients")


def check(
    region: LossRegion, own: Callable[..., Tensor], call: NextToken, hidden: Tensor, head: nn.Linear
) -> LossVerdict:
    """Compare the model's ``own`` loss function, the formula and the loss region.

    Args:
        region: computes on the whole batch, of which all but the compared tokens are ignored: the programs are those of
            the training step.
        own: the loss function as a function of logits, labels and ``shift_labels`` (or None).
        call: labels and what else the loss depends on.
        hidden: [batch, length, features]. head: the output embedding.
    """
    with torch.inference_mode(False):  # the first batch may be one of evaluation; copies have gradients all the same
        shift = None if call.shift_labels is None else call.shift_labels.clone()
        return _check(region, own, replace(call, labels=call.labels.clone(), shift_labels=shift), hidden.clone(), head)


def _check(
    region: LossRegion, own: Callable[..., Tensor], call: NextToken, hidden: Tensor, head: nn.Linear
) -> LossVerdict:
    rows, length = max(1, TOKENS // hidden.shape[1]), min(hidden.shape[1], TOKENS)
    part = (slice(rows), slice(length))
    shift = None if call.shift_labels is None else call.shift_labels[part]
    small = replace(call, labels=call.labels[part], shift_labels=shift)
    target = small.target()
    if bool((target == call.ignore_index).all()):
        return PENDING
    whole = torch.full(hidden.shape[:2], call.ignore_index)
    whole[part] = target

    def formula(h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return call.loss(_host_cross_entropy, h[part], w, b, target)

    def models(h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return own(F.linear(h[part], w, b), small.labels, shift)

    def regions(h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return call.loss(lambda *args: cross_entropy(region, *args), h, w, b, whole)

    wanted = _loss_and_gradients(formula, hidden, head)
    apart = _difference(_loss_and_gradients(models, hidden, head), wanted)
    if not apart <= SAME:
        return LossVerdict(
            False, f"the model's own loss or gradients differ from those of a cross-entropy by {apart:.1%}"
        )
    try:
        apart = _difference(_loss_and_gradients(regions, hidden, head), wanted)
    except NotLowered as refused:
        return LossVerdict(False, str(refused))
    if not apart <= CLOSE and region.session.device.name != "null":  # which computes nothing
        return LossVerdict(False, f"loss or gradients on the engine differ from those of the model by {apart:.1%}")
    return SAME_LOSS


def _host_cross_entropy(h: Tensor, w: Tensor, target: Tensor, b: Tensor | None, reduction: str, ignore: int) -> Tensor:
    return F.cross_entropy(F.linear(h, w, b), target, reduction=reduction, ignore_index=ignore)


def _loss_and_gradients(function: Callable[..., Tensor], hidden: Tensor, head: nn.Linear) -> list[Tensor]:
    """The loss and its gradients with regard to hidden states and those parameters of the head that are trained."""

    def leaf(x: Any) -> Any:
        return None if x is None else x.detach().requires_grad_(x is hidden or x.requires_grad)

    leaves = [leaf(x) for x in (hidden, head.weight, head.bias)]
    with torch.enable_grad():
        loss = function(*leaves)
        gradients = torch.autograd.grad(loss, [x for x in leaves if x is not None and x.requires_grad])
    return [loss.detach(), *gradients]


def _difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest of the relative differences, ``||found - wanted|| / ||wanted||``."""
    ratios = [
        float((f - w).norm() / w.norm().clamp_min(torch.finfo(w.dtype).tiny))
        for f, w in zip(found, wanted, strict=True)
    ]
    return math.nan if any(math.isnan(r) for r in ratios) else max(ratios)
