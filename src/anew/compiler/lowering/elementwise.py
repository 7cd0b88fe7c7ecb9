"""Lowering of elementwise ATen operations and their derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from anew.compiler.lowering.comparison import truth
from anew.compiler.lowering.table import Lowering, NotLowered, lowers
from anew.mil import Value

aten = torch.ops.aten
anew = torch.ops.anew

Scalar = float | int


def _binary(kind: str) -> Callable[..., Value]:
    def lower(low: Lowering, node: Node, x: Value | Scalar, y: Value | Scalar, alpha: Scalar = 1) -> Value:
        if alpha != 1:
            y = low.op("mul", x=y, y=alpha) if isinstance(y, Value) else y * alpha
        return low.op(kind, x=x, y=y)

    return lower


lowers(aten.add.Tensor, aten.add.Scalar)(_binary("add"))
lowers(aten.sub.Tensor, aten.sub.Scalar)(_binary("sub"))
lowers(aten.mul.Tensor, aten.mul.Scalar)(_binary("mul"))
lowers(aten.pow.Tensor_Tensor)(_binary("pow"))
lowers(aten.maximum.default)(_binary("maximum"))
lowers(aten.minimum.default)(_binary("minimum"))


@lowers(aten.div.Tensor, aten.div.Scalar)
def _div(low: Lowering, node: Node, x: Value, y: Value | Scalar) -> Value:
    if isinstance(y, Value):
        return low.op("real_div", x=x, y=y)
    return low.op("mul", x=x, y=1.0 / y)


@lowers(aten.rsub.Scalar)
def _rsub(low: Lowering, node: Node, x: Value, y: Scalar, alpha: Scalar = 1) -> Value:
    return low.op("sub", x=y, y=x if alpha == 1 else low.op("mul", x=x, y=alpha))


@lowers(aten.addcmul.default)
def _addcmul(low: Lowering, node: Node, x: Value, y: Value, z: Value, value: Scalar = 1) -> Value:
    return low.op("add", x=x, y=low.op("mul", x=y if value == 1 else low.op("mul", x=y, y=value), y=z))


@lowers(aten.lerp.Scalar, aten.lerp.Tensor)
def _lerp(low: Lowering, node: Node, x: Value, y: Value, weight: Value | Scalar) -> Value:
    return low.op("add", x=x, y=low.op("mul", x=low.op("sub", x=y, y=x), y=weight))


@lowers(aten.neg.default)
def _neg(low: Lowering, node: Node, x: Value) -> Value:
    return low.op("mul", x=x, y=-1.0)


@lowers(aten.pow.Tensor_Scalar)
def _pow(low: Lowering, node: Node, x: Value, exponent: Scalar) -> Value:
    if exponent == 1:
        return x
    if exponent == 2:
        return low.op("mul", x=x, y=x)
    if exponent == 3:
        return low.op("mul", x=low.op("mul", x=x, y=x), y=x)
    return low.op("pow", x=x, y=exponent)


def _unary(kind: str, **fixed: Any) -> Callable[..., Value]:
    return lambda low, node, x: low.op(kind, x=x, **fixed)


lowers(aten.abs.default)(_unary("abs"))
lowers(aten.sgn.default, aten.sign.default)(_unary("sign"))
lowers(aten.relu.default)(_unary("relu"))
lowers(aten.exp.default)(_unary("exp"))
lowers(aten.log.default)(_unary("log", epsilon=0.0))
lowers(aten.erf.default)(_unary("erf"))
lowers(aten.sqrt.default)(lambda low, node, x: low.sqrt(x))
lowers(aten.rsqrt.default)(lambda low, node, x: low.rsqrt(x))
lowers(aten.reciprocal.default)(_unary("inverse", epsilon=0.0))
lowers(aten.tanh.default)(_unary("tanh"))
lowers(aten.sin.default)(_unary("sin"))
lowers(aten.cos.default)(_unary("cos"))


def logistic(low: Lowering, x: Value) -> Value:
    """The logistic function by way of tanh: the engine's table of tanh is several times as fine as that of sigmoid."""
    return _half_up(low, low.op("tanh", x=low.op("mul", x=x, y=0.5)))


@lowers(aten.sigmoid.default)
def _sigmoid(low: Lowering, node: Node, x: Value) -> Value:
    return logistic(low, x)


@lowers(aten.silu.default)
def _silu(low: Lowering, node: Node, x: Value) -> Value:
    return low.op("mul", x=x, y=logistic(low, x))


@lowers(anew.silu.default)
def _silu_gated(low: Lowering, node: Node, half: Value) -> tuple[Value, Value]:
    gate = low.op("add", x=low.op("tanh", x=half), y=1.0)
    return low.op("mul", x=half, y=gate), gate


@lowers(anew.silu_backward.default)
def _silu_gated_backward(low: Lowering, node: Node, grad: Value, y: Value, gate: Value) -> Value:
    return low.op("mul", x=grad, y=low.op("add", x=gate, y=low.op("mul", x=y, y=low.op("sub", x=2.0, y=gate))))


@lowers(aten.sigmoid_backward.default)
def _sigmoid_backward(low: Lowering, node: Node, grad: Value, y: Value) -> Value:
    return low.op("mul", x=grad, y=low.op("mul", x=y, y=low.op("sub", x=1.0, y=y)))


@lowers(aten.tanh_backward.default)
def _tanh_backward(low: Lowering, node: Node, grad: Value, y: Value) -> Value:
    return low.op("mul", x=grad, y=low.op("sub", x=1.0, y=low.op("mul", x=y, y=y)))


@lowers(aten.silu_backward.default)
def _silu_backward(low: Lowering, node: Node, grad: Value, x: Value) -> Value:
    gate = logistic(low, x)
    slope = low.op("add", x=low.op("mul", x=x, y=low.op("sub", x=1.0, y=gate)), y=1.0)
    return low.op("mul", x=grad, y=low.op("mul", x=gate, y=slope))


@lowers(aten.gelu.default)
def _gelu(low: Lowering, node: Node, x: Value, approximate: str = "none") -> Value:
    """By way of erf or tanh: the engine's table of gelu is as coarse near zero as elsewhere, and not zero at zero."""
    odd = _gelu_tanh(low, x) if approximate == "tanh" else _gelu_erf(low, x)
    return low.op("mul", x=x, y=_half_up(low, odd))


@lowers(aten.gelu_backward.default)
def _gelu_backward(low: Lowering, node: Node, grad: Value, x: Value, approximate: str = "none") -> Value:
    slope = _gelu_tanh_slope(low, x) if approximate == "tanh" else _gelu_erf_slope(low, x)
    return low.op("mul", x=grad, y=slope)


def _half_up(low: Lowering, x: Value) -> Value:
    return low.op("mul", x=low.op("add", x=x, y=1.0), y=0.5)


def _square(low: Lowering, x: Value) -> Value:
    """The square of x, held where the functions of it have long been flat: fp16 holds no square of 256 and more."""
    held = low.op("minimum", x=low.op("maximum", x=x, y=-16.0), y=16.0)
    return low.op("mul", x=held, y=held)


def _gelu_erf(low: Lowering, x: Value) -> Value:
    return low.op("erf", x=low.op("mul", x=x, y=math.sqrt(0.5)))


def _gelu_erf_slope(low: Lowering, x: Value) -> Value:
    bell = low.op("exp", x=low.op("mul", x=_square(low, x), y=-0.5))
    pdf = low.op("mul", x=bell, y=1 / math.sqrt(2 * math.pi))
    return low.op("add", x=_half_up(low, _gelu_erf(low, x)), y=low.op("mul", x=x, y=pdf))


def _gelu_tanh(low: Lowering, x: Value) -> Value:
    return low.op("tanh", x=_gelu_polynomial(low, x, 1))


def _gelu_polynomial(low: Lowering, x: Value, power: int) -> Value:
    """``c x (1 + 0.044715 power x^2)``: for 1 the argument of gelu's tanh, for 3 its slope times x."""
    c = math.sqrt(2 / math.pi)
    return low.op("mul", x=x, y=low.op("add", x=low.op("mul", x=_square(low, x), y=power * 0.044715 * c), y=c))


def _gelu_tanh_slope(low: Lowering, x: Value) -> Value:
    t = _gelu_tanh(low, x)
    sech = low.op("sub", x=1.0, y=low.op("mul", x=t, y=t))
    ramp = low.op("mul", x=low.op("mul", x=sech, y=_gelu_polynomial(low, x, 3)), y=0.5)
    return low.op("add", x=_half_up(low, t), y=ramp)


@lowers(aten.clone.default, aten.detach.default, aten.alias.default)
def _same(low: Lowering, node: Node, x: Value, memory_format: object = None) -> Value:
    return x


@lowers(aten._to_copy.default)
def _to_copy(low: Lowering, node: Node, x: Value, dtype: torch.dtype | None = None, **kwargs: Any) -> Value:
    if dtype == torch.bool:
        return truth(low, low.op("not_equal", x=x, y=0.0))
    if dtype not in (None, torch.float32):
        raise NotLowered(f"a cast to {dtype} inside a region would not keep the boundary's float32")
    return x
