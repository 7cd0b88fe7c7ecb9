"""Operations anew gives to PyTorch so that autograd differentiates them in a form the engine computes safely."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: What a masked score becomes: far below any score, and finite in fp16 (-inf never reaches a program).
MASKED = -30000.0


@torch.library.custom_op("anew::rms_norm", mutates_args=())
def rms_norm(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Normalise the last axis by its root mean square, without a gain.

    Returns ``x / sqrt(mean(x^2) + eps)`` and the reciprocal root mean square, [..., 1].
    """
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x * rstd, rstd


@rms_norm.register_fake
def _(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty((*x.shape[:-1], 1))


@torch.library.custom_op("anew::rms_norm_backward", mutates_args=())
def rms_norm_backward(grad: Tensor, normed: Tensor, rstd: Tensor) -> Tensor:
    """Gradient of :func:`rms_norm` from its two results: ``rstd * (grad - normed * mean(grad * normed))``."""
    return rstd * (grad - normed * (grad * normed).mean(-1, keepdim=True))


@rms_norm_backward.register_fake
def _(grad: Tensor, normed: Tensor, rstd: Tensor) -> Tensor:
    return torch.empty_like(grad)


def _save(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, grad_rstd: Tensor | None) -> tuple[Tensor | None, None]:
    if grad_rstd is not None:
        raise RuntimeError("anew::rms_norm: the second result is not differentiable")
    return (None if grad is None else torch.ops.anew.rms_norm_backward(grad, *ctx.saved_tensors)), None


rms_norm.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op("anew::additive_mask", mutates_args=())
def additive_mask(mask: Tensor) -> Tensor:
    """An additive fp32 mask of a bool one's shape: 0 where it is True, ``MASKED`` elsewhere."""
    return torch.zeros(mask.shape).masked_fill(~mask, MASKED)


@additive_mask.register_fake
def _(mask: Tensor) -> Tensor:
    return torch.empty(mask.shape)


@torch.library.custom_op("anew::causal_mask", mutates_args=())
def causal_mask(queries: int, keys: int) -> Tensor:
    """An additive fp32 mask [queries, keys]: 0 where key <= query, ``MASKED`` elsewhere (aligned upper left)."""
    visible = torch.ones(queries, keys, dtype=torch.bool).tril()
    return torch.zeros(queries, keys).masked_fill(~visible, MASKED)


@causal_mask.register_fake
def _(queries: int, keys: int) -> Tensor:
    return torch.empty(queries, keys)
