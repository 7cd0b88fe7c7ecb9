"""Operations anew gives to PyTorch so that autograd differentiates them in a form the engine computes safely."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: What is added to a masked score: far below any score, finite in fp16 even twice over (-inf never reaches a program).
#: fp16's step is 16 there, so masked scores within 8 of 0 all become equal.
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


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, grad_rstd: Tensor | None) -> tuple[Tensor | None, None]:
    if grad_rstd is not None:
        raise RuntimeError("anew::rms_norm: the second result is not differentiable")
    return (None if grad is None else torch.ops.anew.rms_norm_backward(grad, *ctx.saved_tensors)), None


rms_norm.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op("anew::silu", mutates_args=(), tags=torch.Tag.pointwise)
def silu(half: Tensor) -> tuple[Tensor, Tensor]:
    """Return silu of ``x = 2 half`` and its gate ``2 sigmoid(x)``: backward reads these two, not x, and no table."""
    gate = 1 + torch.tanh(half)
    return half * gate, gate


@silu.register_fake
def _(half: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(half), torch.empty_like(half)


@torch.library.custom_op("anew::silu_backward", mutates_args=())
def silu_backward(grad: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """Gradient of :func:`silu` from its two results: ``grad (gate + y (2 - gate))``."""
    return grad * (gate + y * (2 - gate))


@silu_backward.register_fake
def _(grad: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return torch.empty_like(y)


def _silu_backward(ctx: Any, grad: Tensor | None, grad_gate: Tensor | None) -> Tensor | None:
    if grad_gate is not None:
        raise RuntimeError("anew::silu: the second result is not differentiable")
    return None if grad is None else torch.ops.anew.silu_backward(grad, *ctx.saved_tensors)


silu.register_autograd(_silu_backward, setup_context=_save)


@torch.library.custom_op("anew::softmax_backward", mutates_args=())
def softmax_backward(grad: Tensor, y: Tensor, total: Tensor) -> Tensor:
    """Gradient of softmax over the last axis from its result and ``total``, the sums of ``grad * y``, [..., 1]."""
    return y * (grad - total)


@softmax_backward.register_fake
def _(grad: Tensor, y: Tensor, total: Tensor) -> Tensor:
    return torch.empty_like(grad)


@torch.library.custom_op("anew::standardize", mutates_args=())
def standardize(x: Tensor, axes: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Bring x to mean 0 and variance 1 over axes, without gain and bias.

    Returns ``(x - mean) / sqrt(var + eps)``, the reciprocal standard deviation and the mean, the axes kept with length
    one. The gradient flows through the first result only.
    """
    mean = x.mean(axes, keepdim=True)
    rstd = torch.rsqrt((x - mean).square().mean(axes, keepdim=True) + eps)
    return (x - mean) * rstd, rstd, mean


@standardize.register_fake
def _(x: Tensor, axes: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    reduced = x.new_empty(_reduced(x, axes))
    return torch.empty_like(x, memory_format=torch.contiguous_format), reduced, torch.empty_like(reduced)


def _reduced(x: Tensor, axes: list[int]) -> list[int]:
    kept = {a % x.dim() for a in axes}
    return [1 if i in kept else n for i, n in enumerate(x.shape)]


@torch.library.custom_op("anew::standardize_backward", mutates_args=())
def standardize_backward(grad: Tensor, normed: Tensor, rstd: Tensor, axes: list[int]) -> Tensor:
    """Gradient of :func:`standardize` from its first two results."""
    along = (grad * normed).mean(axes, keepdim=True)
    return rstd * (grad - grad.mean(axes, keepdim=True) - normed * along)


@standardize_backward.register_fake
def _(grad: Tensor, normed: Tensor, rstd: Tensor, axes: list[int]) -> Tensor:
    return torch.empty_like(normed)


def _save_standardize(ctx: Any, inputs: tuple[Tensor, list[int], float], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.axes = inputs[1]
    ctx.save_for_backward(*output[:2])
    ctx.set_materialize_grads(False)


def _standardize_backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, None, None]:
    if any(other is not None for other in others):
        raise RuntimeError("anew::standardize: only the first result is differentiable")
    back = torch.ops.anew.standardize_backward
    return (None if grad is None else back(grad, *ctx.saved_tensors, ctx.axes)), None, None


standardize.register_autograd(_standardize_backward, setup_context=_save_standardize)


@torch.library.custom_op("anew::amax", mutates_args=())
def amax(x: Tensor, axes: list[int]) -> Tensor:
    """Largest value over axes, which are kept with length one."""
    return x.amax(axes, keepdim=True)


@amax.register_fake
def _(x: Tensor, axes: list[int]) -> Tensor:
    return x.new_empty(_reduced(x, axes))


@torch.library.custom_op("anew::amax_backward", mutates_args=())
def amax_backward(grad: Tensor, x: Tensor, y: Tensor, axes: list[int]) -> Tensor:
    """Gradient of :func:`amax`: the largest values share it evenly, as in torch.amax."""
    hits = (x == y).to(x.dtype)
    return hits * (grad / hits.sum(axes, keepdim=True))


@amax_backward.register_fake
def _(grad: Tensor, x: Tensor, y: Tensor, axes: list[int]) -> Tensor:
    return torch.empty_like(x)


def _save_amax(ctx: Any, inputs: tuple[Tensor, list[int]], output: Tensor) -> None:
    ctx.axes = inputs[1]
    ctx.save_for_backward(inputs[0], output)


def _amax_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.anew.amax_backward(grad, *ctx.saved_tensors, ctx.axes), None


amax.register_autograd(_amax_backward, setup_context=_save_amax)


@torch.library.custom_op("anew::max_pool2d", mutates_args=())
def max_pool2d(x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """Largest value of each window of x [batch, channels, height, width]."""
    return torch.nn.functional.max_pool2d(x, kernel, stride, padding, dilation)


@max_pool2d.register_fake
def _(x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    sides = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    return x.new_empty((*x.shape[:2], *sides))


@torch.library.custom_op("anew::max_pool2d_backward", mutates_args=())
def max_pool2d_backward(
    grad: Tensor, x: Tensor, y: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """Gradient of :func:`max_pool2d` from its operand and result: the first of equal values takes it, as in torch."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        pooled = torch.nn.functional.max_pool2d(x, kernel, stride, padding, dilation)
    return torch.autograd.grad(pooled, x, grad)[0]


@max_pool2d_backward.register_fake
def _(
    grad: Tensor, x: Tensor, y: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save_max_pool(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.window = inputs[1:]
    ctx.save_for_backward(inputs[0], output)


def _max_pool_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    return torch.ops.anew.max_pool2d_backward(grad, *ctx.saved_tensors, *ctx.window), None, None, None, None


max_pool2d.register_autograd(_max_pool_backward, setup_context=_save_max_pool)


@torch.library.custom_op("anew::additive_mask", mutates_args=())
def additive_mask(mask: Tensor) -> Tensor:
    """A finite additive mask of another mask's shape: ``MASKED`` where nothing may be seen.

    A bool mask gives fp32, 0 where it is True; of a float mask, whatever lies below ``MASKED`` is raised to it.
    """
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape).masked_fill(~mask, MASKED)
    return mask.clamp(min=MASKED)


@additive_mask.register_fake
def _(mask: Tensor) -> Tensor:
    return torch.empty(mask.shape) if mask.dtype == torch.bool else torch.empty_like(mask)


def _pass_through(ctx: Any, grad: Tensor) -> Tensor:
    """Raising what is below ``MASKED`` changes no weight beside a visible one: the gradient is that of a plain sum."""
    return grad


additive_mask.register_autograd(_pass_through)


@torch.library.custom_op("anew::visible_rows", mutates_args=())
def visible_rows(mask: Tensor) -> Tensor:
    """1 for every row of a bool or float mask that sees anything, 0 for one all False or all -inf: fp32, [..., 1]."""
    seen = mask if mask.dtype == torch.bool else mask > -torch.inf
    return seen.any(-1, keepdim=True).float()


@visible_rows.register_fake
def _(mask: Tensor) -> Tensor:
    return torch.empty((*mask.shape[:-1], 1))


@torch.library.custom_op("anew::causal_mask", mutates_args=())
def causal_mask(queries: int, keys: int) -> Tensor:
    """An additive fp32 mask [queries, keys]: 0 where key <= query, ``MASKED`` elsewhere (aligned upper left)."""
    visible = torch.ones(queries, keys, dtype=torch.bool).tril()
    return torch.zeros(queries, keys).masked_fill(~visible, MASKED)


@causal_mask.register_fake
def _(queries: int, keys: int) -> Tensor:
    return torch.empty(queries, keys)
