"""Functions of torch written out in a form whose values and derivatives the engine computes within fp16.

``REPLACEMENTS`` maps a function to the one that takes its place in a captured graph; batch norm with running statistics
is the matter of :mod:`anew.frontend.statistics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anew.compiler import custom_ops  # noqa: F401  (registers torch.ops.anew)

#: The least positive number of fp16.
SMALLEST = 2.0**-24


def rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Torch's rms_norm over the last axis by way of anew's operation."""
    if len(shape) != 1:
        return F.rms_norm(x, shape, weight, eps)
    normed = torch.ops.anew.rms_norm(x, torch.finfo(x.dtype).eps if eps is None else eps)[0]
    return normed if weight is None else normed * weight


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """Torch's layer_norm."""
    axes = list(range(x.dim() - len(normalized_shape), x.dim()))
    return _affine(torch.ops.anew.standardize(x, axes, eps)[0], weight, bias)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """Torch's group_norm of x [batch, channels, ...]."""
    grouped = x.reshape(x.shape[0], num_groups, x.shape[1] // num_groups, -1)
    normed = torch.ops.anew.standardize(grouped, [2, 3], eps)[0].reshape(x.shape)
    return _affine(normed, *(None if p is None else by_channel(p, x) for p in (weight, bias)))


def by_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """A parameter [channels] in the shape that broadcasts against x [batch, channels, ...]."""
    return parameter.view(1, -1, *[1] * (x.dim() - 2))


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def amax(x: Tensor, dim: int | Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """Torch's amax."""
    dims = [dim] if isinstance(dim, int) else list(dim or range(x.dim()))
    largest: Tensor = torch.ops.anew.amax(x, dims)
    return largest if keepdim else largest.squeeze(tuple(dims))


def amin(x: Tensor, dim: int | Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """Torch's amin."""
    return -amax(-x, dim, keepdim)


def normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None) -> Tensor:
    """Torch's normalize; an ``eps`` below fp16 is fp16's least number: of norms, only 0 lies below that."""
    norm = torch.linalg.vector_norm(x, p, dim, keepdim=True)
    return x / norm.clamp_min(max(eps, SMALLEST)).expand_as(x)


def max_pool2d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: Any = False,
) -> Any:
    """Torch's max_pool2d; with ``ceil_mode`` or indices, or of a single image, it stays what it is."""
    if ceil_mode or return_indices or x.dim() != 4:
        return F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    window = [_pair(v) for v in (kernel_size, stride or kernel_size, padding, dilation)]
    return torch.ops.anew.max_pool2d(x, *window)


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else [value[0], value[-1]]


def silu(x: Tensor, inplace: bool = False) -> Tensor:
    """Torch's silu: its backward reads what the forward pass computed, or half of x alone where that is cheaper."""
    gated: Tensor = torch.ops.anew.silu(x / 2)[0]
    return gated


def mish(x: Tensor, inplace: bool = False) -> Tensor:
    """Torch's mish: its own form has exp(x)."""
    return x * torch.tanh(F.softplus(x))


def logsigmoid(x: Tensor) -> Tensor:
    """Torch's logsigmoid."""
    return -F.softplus(-x)


REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    F.rms_norm: rms_norm,
    torch.rms_norm: rms_norm,
    F.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    F.group_norm: group_norm,
    torch.group_norm: group_norm,
    torch.amax: amax,
    torch.amin: amin,
    F.max_pool2d: max_pool2d,
    F.normalize: normalize,
    F.silu: silu,
    F.mish: mish,
    F.logsigmoid: logsigmoid,
}
METHODS: dict[str, Callable[..., Any]] = {"amax": amax, "amin": amin}
