"""Parts that published programs share, as written by hand for the engine, each with its meaning in PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from anew.mil import Builder, Value
from tests.corpus.case import numbers

Conv = dict[str, object]
ONE_BY_ONE: Conv = {
    "strides": [1, 1], "pad_type": "valid", "pad": [0, 0, 0, 0], "dilations": [1, 1], "groups": 1,
}  # fmt: skip


def conv(b: Builder, x: Value, weight: Tensor | Value, hint: str = "conv", **form: object) -> Value:
    """A convolution with a baked weight (a tensor) or a runtime one (a value)."""
    w = weight if isinstance(weight, Value) else b.array(weight.numpy(), "w")
    return b.op("conv", hint, x=x, weight=w, **(ONE_BY_ONE | form))


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """The 1x1 convolution in PyTorch."""
    return F.conv2d(x, weight)


def weight(seed: int, out: int, into: int) -> Tensor:
    """A weight [out, into, 1, 1] that keeps the size of what it multiplies."""
    return numbers(seed, out, into, 1, 1, scale=into**-0.5)


def layer_norm(b: Builder, x: Value) -> Value:
    """Over the channels, by reduce_mean and a power, as written by hand for the engine."""
    centred = b.op("sub", x=x, y=b.op("reduce_mean", x=x, axes=[1], keep_dims=True))
    variance = b.op("reduce_mean", x=b.op("mul", x=centred, y=centred), axes=[1], keep_dims=True)
    return b.op("mul", x=centred, y=b.op("pow", x=b.op("add", x=variance, y=1e-5), y=-0.5))


def layer_norm_reference(x: Tensor) -> Tensor:
    """Its meaning."""
    return F.layer_norm(x.transpose(1, -1), x.shape[1:2], eps=1e-5).transpose(1, -1)


def rms_norm(b: Builder, x: Value) -> Value:
    """Over the channels, by reduce_sum and a power."""
    total = b.op("reduce_sum", x=b.op("mul", x=x, y=x), axes=[1], keep_dims=True)
    mean = b.op("add", x=b.op("mul", x=total, y=1 / x.shape[1]), y=1e-5)
    return b.op("mul", x=x, y=b.op("pow", x=mean, y=-0.5))


def rms_norm_reference(x: Tensor) -> Tensor:
    """Its meaning."""
    return x * (x.square().mean(1, keepdim=True) + 1e-5).rsqrt()


def gelu_reference(x: Tensor) -> Tensor:
    """The form with tanh."""
    return F.gelu(x, approximate="tanh")


def gelu(b: Builder, x: Value) -> Value:
    """The form with tanh, one operation at a time."""
    cubic = b.op("mul", x=b.op("mul", x=b.op("mul", x=x, y=x), y=x), y=0.044715)
    inner = b.op("mul", x=b.op("add", x=x, y=cubic), y=math.sqrt(2 / math.pi))
    return b.op("mul", x=b.op("mul", x=x, y=0.5), y=b.op("add", x=b.op("tanh", x=inner), y=1.0))


def split_heads(b: Builder, x: Value, heads: int) -> Value:
    """[1, C, 1, S] to [1, heads, S, C / heads]."""
    _, channels, _, length = x.shape
    return b.op("transpose", x=b.op("reshape", x=x, shape=[1, heads, channels // heads, length]), perm=[0, 1, 3, 2])


def attend(b: Builder, q: Value, k: Value, v: Value, mask: Value) -> Value:
    """Decomposed causal attention over heads; the result is [1, C, 1, S]."""
    scores = b.op("matmul", x=q, y=k, transpose_x=False, transpose_y=True)
    scores = b.op("add", x=b.op("mul", x=scores, y=q.shape[-1] ** -0.5), y=mask)
    out = b.op("matmul", x=b.op("softmax", x=scores, axis=-1), y=v, transpose_x=False, transpose_y=False)
    back = b.op("transpose", x=out, perm=[0, 1, 3, 2])
    return b.op("reshape", x=back, shape=[1, q.shape[1] * q.shape[3], 1, q.shape[2]])


def attend_reference(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Its meaning, on [1, C, 1, S]."""
    length = q.shape[-1]
    q, k, v = (x.reshape(1, heads, -1, length).mT for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).mT.reshape(1, -1, 1, length)


def causal(b: Builder, length: int) -> Value:
    """The additive mask of -1e4 above the diagonal, as a constant."""
    return b.array(torch.full((1, 1, length, length), -1e4).triu(1).numpy(), "mask")
