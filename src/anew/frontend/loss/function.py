"""``anew.linear_cross_entropy``: the loss region as a function like that of ``torch.nn.functional``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anew.errors import UserError
from anew.frontend.loss.region import NO_LABEL, Head, LossRegion, Mass, loss_region
from anew.frontend.options import Options
from anew.frontend.session import session_for

REDUCTIONS = ("mean", "sum", "none")


@torch.compiler.disable  # inside compiled code it breaks the graph and runs as it is
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    **engine: Any,
) -> Tensor:
    """Cross-entropy of ``input @ linear_weight.T + linear_bias`` on the engine, without the logits as a whole.

    The arguments are those of :func:`torch.nn.functional.linear_cross_entropy`, and the result equals it up to the
    engine's rounding. It has no second derivative.

    Args:
        input: [tokens, features] or [features], fp32.
        linear_weight: [vocabulary, features], fp32; tied to an embedding or not.
        target: int64 columns of the vocabulary, [tokens] or [].
        linear_bias: [vocabulary], fp32.
        reduction: ``mean`` over the tokens that count (NaN if none does), ``sum`` or ``none``.
        ignore_index: the label of tokens that do not count; -100 if None.
        weight, label_smoothing, options: only their defaults; use PyTorch's function for them.
        engine: fields of :class:`anew.frontend.options.Options`, such as ``chip="m5"``.

    Raises UserError for anything else, and NotLowered when the chip cannot take the shapes.
    """
    if weight is not None or label_smoothing or options is not None:
        raise UserError(
            "anew.linear_cross_entropy takes no class weights, label smoothing or chunking options; "
            "use torch.nn.functional.linear_cross_entropy"
        )
    region = loss_region(session_for(Options.parse(engine)))
    return cross_entropy(
        region, input, linear_weight, target, linear_bias, reduction, -100 if ignore_index is None else ignore_index
    )


def cross_entropy(
    region: LossRegion,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    reduction: str,
    ignore_index: int,
) -> Tensor:
    """:func:`linear_cross_entropy` in a loss region."""
    _check(input, weight, target, bias, reduction)
    labelled = target != ignore_index
    labels = target.where(labelled, NO_LABEL)
    wrong = labels[labelled & ((labels < 0) | (labels >= len(weight)))]
    if len(wrong):
        raise UserError(f"target {int(wrong[0])} is outside the vocabulary of {len(weight)}")
    hidden = input.view(-1, input.shape[-1])
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (input, weight, bias))
    losses: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, labels.view(-1), region, keep)
    if reduction == "none":
        return losses.view(target.shape)
    return losses.sum() / labelled.sum() if reduction == "mean" else losses.sum()


def _check(input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, reduction: str) -> None:
    if input.dim() not in (1, 2) or weight.dim() != 2 or input.shape[-1] != weight.shape[1]:
        raise UserError(f"input {list(input.shape)} and linear_weight {list(weight.shape)} are no [n, k] and [m, k]")
    if target.shape != input.shape[:-1] or target.dtype != torch.int64:
        raise UserError(
            f"target is {target.dtype} {list(target.shape)}; torch.int64 {list(input.shape[:-1])} fits this input"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UserError(f"linear_bias {list(bias.shape)} does not fit linear_weight {list(weight.shape)}")
    for name, x in (("input", input), ("linear_weight", weight), ("linear_bias", bias)):
        if x is not None and x.dtype != torch.float32:
            raise UserError(f"{name} is {x.dtype}; the loss region takes torch.float32")
    if reduction not in REDUCTIONS:
        raise UserError(f"reduction is one of {', '.join(REDUCTIONS)}, not {reduction!r}")


class _LinearCrossEntropy(torch.autograd.Function):
    """Losses [tokens] of hidden states, weight, bias and labels, as :class:`Head` has them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, region: LossRegion, keep: bool
    ) -> Tensor:
        """Run the forward programs."""
        losses, wrong, mass = region.losses(Head(hidden, weight, bias, target), keep=keep)
        ctx.save_for_backward(hidden, weight, bias, target, wrong, mass.largest, mass.total, mass.shares, *mass.kept)
        ctx.region = region
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Run the backward programs."""
        if torch.is_grad_enabled():
            raise UserError("create_graph=True: the loss region has no second derivative; use PyTorch's function")
        hidden, weight, bias, target, wrong, largest, total, shares, *kept = ctx.saved_tensors
        factor = torch.where(target == NO_LABEL, 0.0, grad * wrong)  # a NaN where nothing counts stays out, as in torch
        wanted = dict(zip(("hidden", "weight", "bias"), ctx.needs_input_grad, strict=False))
        mass = Mass(largest, total, shares, tuple(kept))
        gradients = ctx.region.gradients(Head(hidden, weight, bias, target), mass, factor, **wanted)
        return (*gradients, None, None, None)
