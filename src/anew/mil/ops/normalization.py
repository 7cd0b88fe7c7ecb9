"""Normalizations: over axes of one tensor, over a channel, or by statistics that are given."""

from __future__ import annotations

import torch
from torch import Tensor

from anew.mil.ops.registry import axis_of, constant, define, optional, shape_error, tensor
from anew.mil.types import TensorType

_AFFINE = (constant("gamma", required=False), constant("beta", required=False), optional("epsilon", "fp16", 1e-5))


def _flops(result: TensorType, **_: object) -> int:
    return 6 * result.numel  # mean, subtract, square, mean, multiply twice


def _vectors(**given: TensorType | None) -> dict[str, TensorType]:
    return {name: v for name, v in given.items() if v is not None}


def _normalized(x: TensorType, axes: tuple[int, ...] | None) -> list[int]:
    """The axes, all of them by default, in order."""
    return sorted({axis_of("layer_norm", a, x.rank) for a in (range(x.rank) if axes is None else axes)})


def _layer_norm_type(
    x: TensorType, axes: tuple[int, ...] | None, gamma: TensorType | None, beta: TensorType | None, epsilon: float
) -> TensorType:
    shape = tuple(x.shape[a] for a in _normalized(x, axes))
    for name, v in _vectors(gamma=gamma, beta=beta).items():
        if v.shape != shape:
            raise shape_error("layer_norm", f"{name} has the normalized axes", normalized=shape, given=v.shape)
    return x


def _layer_norm(
    x: Tensor, axes: tuple[int, ...] | None, gamma: Tensor | None, beta: Tensor | None, epsilon: float
) -> Tensor:
    over = [a % x.dim() for a in (range(x.dim()) if axes is None else axes)]
    kept = [n if i in over else 1 for i, n in enumerate(x.shape)]
    return _affine(_standard(x, over, epsilon), kept, gamma, beta)


def _standard(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    """Mean 0 and variance 1 over the axes."""
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + epsilon)


def _affine(x: Tensor, shape: list[int], gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    if gamma is not None:
        x = x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


define(
    "layer_norm",
    (tensor("x"), optional("axes", "int32[]", None), *_AFFINE),
    _layer_norm_type,
    _layer_norm,
    "lookup",
    _flops,
)


def _check_channels(op: str, x: TensorType, lowest: int, **vectors: TensorType | None) -> TensorType:
    if x.rank < lowest or x.rank > 5:
        raise shape_error(op, f"x has {lowest} to 5 axes", x=x.shape)
    for name, v in _vectors(**vectors).items():
        if v.shape != (x.shape[1],):
            raise shape_error(op, f"{name} has one number a channel", x=x.shape, given=v.shape)
    return x


def _channels(x: Tensor) -> list[int]:
    return [1, -1, *[1] * (x.dim() - 2)]


def _batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float
) -> Tensor:
    shape = _channels(x)
    normal = (x - mean.reshape(shape)) * torch.rsqrt(variance.reshape(shape) + epsilon)
    return _affine(normal, shape, gamma, beta)


define(
    "batch_norm",
    (tensor("x"), constant("mean"), constant("variance"), *_AFFINE),
    lambda x, mean, variance, gamma, beta, epsilon: _check_channels(
        "batch_norm", x, 3, mean=mean, variance=variance, gamma=gamma, beta=beta
    ),
    _batch_norm,
    "lookup",
    lambda result, **_: 2 * result.numel,  # folded into one factor and one term a channel
)

define(
    "instance_norm",
    (tensor("x"), *_AFFINE),
    lambda x, gamma, beta, epsilon: _check_channels("instance_norm", x, 3, gamma=gamma, beta=beta),
    lambda x, gamma, beta, epsilon: _affine(_standard(x, list(range(2, x.dim())), epsilon), _channels(x), gamma, beta),
    "lookup",
    _flops,
)


def _l2_norm_type(x: TensorType, epsilon: float) -> TensorType:
    if x.rank < 3:
        raise shape_error("l2_norm", "x has at least three axes", x=x.shape)
    return x


define(
    "l2_norm",
    (tensor("x"), optional("epsilon", "fp16", 1e-6)),
    _l2_norm_type,
    lambda x, epsilon: x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon),
    "lookup",
    lambda result, **_: 3 * result.numel,  # square, add, multiply
)
