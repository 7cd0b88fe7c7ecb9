"""Activation functions with and without parameters, beyond those that a compiled PyTorch graph needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from anew.mil.ops.registry import MilError, const, define, tensor
from anew.mil.types import TensorType


def _activation(name: str, parameters: str, meaning: Callable[..., Tensor], family: str = "lookup") -> None:
    """Define a function of x and of fp16 numbers."""
    params = (tensor("x"), *(const(p, "fp16") for p in parameters.split()))
    define(name, params, lambda x, **_: x, meaning, family)


_activation("relu6", "", lambda x: x.clamp(0, 6), "elementwise")
_activation("clamped_relu", "alpha beta", lambda x, alpha, beta: torch.where(x >= 0, x, alpha * x).clamp(max=beta))
_activation("leaky_relu", "alpha", lambda x, alpha: torch.where(x >= 0, x, alpha * x))
_activation("elu", "alpha", lambda x, alpha: torch.where(x >= 0, x, alpha * torch.expm1(x)))
_activation("softplus", "", lambda x: F.softplus(x, threshold=1e4))
_activation("softsign", "", lambda x: x / (1 + x.abs()))
_activation("sigmoid_hard", "alpha beta", lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1))
_activation("scaled_tanh", "alpha beta", lambda x, alpha, beta: alpha * torch.tanh(beta * x))
_activation("linear_activation", "alpha beta", lambda x, alpha, beta: alpha * x + beta, "elementwise")
_activation("threshold", "alpha", lambda x, alpha: x.clamp(min=alpha), "elementwise")
_activation("exp2", "", torch.exp2)
_activation("sin", "", torch.sin)
_activation("cos", "", torch.cos)
_activation("atan", "", torch.atan)


def _clip_type(x: TensorType, alpha: float, beta: float) -> TensorType:
    if not alpha < beta:
        raise MilError(f"clip: alpha {alpha} is not smaller than beta {beta}")
    return x


define(
    "clip",
    (tensor("x"), const("alpha", "fp16"), const("beta", "fp16")),
    _clip_type,
    lambda x, alpha, beta: x.clamp(alpha, beta),
    "elementwise",
)
