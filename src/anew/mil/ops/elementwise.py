"""Elementwise operations: arithmetic on two operands, and functions of one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from anew.mil.ops.registry import MilError, broadcast, const, define, optional, tensor
from anew.mil.types import TensorType


def _binary(name: str, meaning: Callable[[Tensor, Tensor], Tensor], family: str = "elementwise") -> None:
    def infer(x: TensorType, y: TensorType) -> TensorType:
        if x.dtype != y.dtype:
            raise MilError(f"{name}: x is {x.dtype} but y is {y.dtype}; cast one of them")
        return TensorType(x.dtype, broadcast(name, x.shape, y.shape))

    define(name, (tensor("x"), tensor("y")), infer, lambda x, y: meaning(x, y), family)


_binary("add", torch.add)
_binary("sub", torch.sub)
_binary("mul", torch.mul)
_binary("maximum", torch.maximum)
_binary("minimum", torch.minimum)
_binary("real_div", torch.div, "lookup")
_binary("pow", torch.pow, "lookup")


def _same(x: TensorType, **_: object) -> TensorType:
    return x


def _unary(name: str, meaning: Callable[[Tensor], Tensor], family: str) -> None:
    define(name, (tensor("x"),), _same, lambda x: meaning(x), family)


_unary("abs", torch.abs, "elementwise")
_unary("relu", torch.relu, "elementwise")
_unary("square", torch.square, "elementwise")
_unary("sign", torch.sign, "lookup")
_unary("exp", torch.exp, "lookup")
_unary("sqrt", torch.sqrt, "lookup")
_unary("erf", torch.erf, "lookup")
_unary("sigmoid", torch.sigmoid, "lookup")
_unary("silu", F.silu, "lookup")
_unary("tanh", torch.tanh, "lookup")

# ``epsilon`` is part of these operations: Core ML adds it to x.
define(
    "rsqrt",
    (tensor("x"), optional("epsilon", "fp16", 1e-12)),
    _same,
    lambda x, epsilon: torch.rsqrt(x + epsilon),
    "lookup",
)
define(
    "inverse",
    (tensor("x"), optional("epsilon", "fp16", 1e-4)),
    _same,
    lambda x, epsilon: torch.reciprocal(x + epsilon),
    "lookup",
)
define(
    "log",
    (tensor("x"), optional("epsilon", "fp16", 1e-45)),
    _same,
    lambda x, epsilon: torch.log(x + epsilon),
    "lookup",
)


_GELU_MODES = ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")
_CAST_TYPES = ("fp16", "fp32", "int8", "uint8", "int16", "uint16", "int32", "bool")


def _gelu_type(x: TensorType, mode: str) -> TensorType:
    if mode not in _GELU_MODES:
        raise MilError(f"gelu: mode '{mode}' is none of {', '.join(_GELU_MODES)}")
    return x


def _gelu(x: Tensor, mode: str) -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


define("gelu", (tensor("x"), const("mode", "string")), _gelu_type, _gelu, "lookup")


def _cast(x: TensorType, dtype: str) -> TensorType:
    if dtype not in _CAST_TYPES:
        raise MilError(f"cast: dtype '{dtype}' is none of {', '.join(_CAST_TYPES)}")
    return TensorType(dtype, x.shape)


define("cast", (tensor("x"), const("dtype", "string")), _cast, lambda x, dtype: x, "move")
