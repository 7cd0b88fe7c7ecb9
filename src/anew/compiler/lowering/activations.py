"""Lowering of activation functions whose textbook form leaves fp16 or loses its small values there.

The others arrive decomposed by torch (:mod:`anew.frontend.decompositions`).
"""

from __future__ import annotations

import torch
from torch.fx import Node

from anew.compiler.lowering.elementwise import logistic
from anew.compiler.lowering.table import Lowering, lowers
from anew.mil import Value

aten = torch.ops.aten


@lowers(aten.log1p.default)
def _log1p(low: Lowering, node: Node, x: Value) -> Value:
    small = low.op("less", x=low.op("abs", x=x), y=0.5)
    return low.select(small, _log1p_small(low, x), _log(low, low.op("add", x=x, y=1.0)))


def _log(low: Lowering, x: Value) -> Value:
    return low.op("log", x=x, epsilon=0.0)


def _log1p_small(low: Lowering, x: Value) -> Value:
    """log(1 + x) for -1/2 <= x <= 1: the series of 2 artanh(x / (2 + x)), which keeps what 1 + x would round away."""
    ratio = low.op("real_div", x=x, y=low.op("add", x=x, y=2.0))
    square = low.op("mul", x=ratio, y=ratio)
    series: Value = low.op("add", x=low.op("mul", x=square, y=2 / 7), y=2 / 5)
    for coefficient in (2 / 3, 2.0):
        series = low.op("add", x=low.op("mul", x=square, y=series), y=coefficient)
    return low.op("mul", x=ratio, y=series)


@lowers(aten.expm1.default)
def _expm1(low: Lowering, node: Node, x: Value) -> Value:
    """exp(x) - 1, below 1/2 by way of tanh, which keeps what the subtraction would round away."""
    half = low.op("tanh", x=low.op("mul", x=x, y=0.5))
    ratio = low.op("real_div", x=low.op("mul", x=half, y=2.0), y=low.op("sub", x=1.0, y=half))
    large = low.op("sub", x=low.op("exp", x=x), y=1.0)
    return low.select(low.op("less", x=x, y=0.5), ratio, large)


@lowers(aten.softplus.default)
def _softplus(low: Lowering, node: Node, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    """log(1 + exp(beta x)) / beta as max(beta x, 0) + log1p(exp(-|beta x|)): nothing overflows.

    Beyond torch's threshold of 20 both forms are x; a lower threshold is a function of its own.
    """
    scaled = _scaled(low, x, beta)
    tail = _log1p_small(low, low.op("exp", x=low.op("mul", x=low.op("abs", x=scaled), y=-1.0)))
    soft = _scaled(low, low.op("add", x=low.op("relu", x=scaled), y=tail), 1 / beta)
    return low.select(low.op("greater", x=scaled, y=threshold), x, soft)


@lowers(aten.softplus_backward.default)
def _softplus_backward(low: Lowering, node: Node, grad: Value, x: Value, beta: float, threshold: float) -> Value:
    scaled = _scaled(low, x, beta)
    soft = low.op("mul", x=grad, y=logistic(low, scaled))
    return low.select(low.op("greater", x=scaled, y=threshold), grad, soft)


def _scaled(low: Lowering, x: Value, factor: float) -> Value:
    return x if factor == 1 else low.op("mul", x=x, y=factor)


@lowers(aten._prelu_kernel.default)
def _prelu(low: Lowering, node: Node, x: Value, slope: Value) -> Value:
    return low.select(low.op("greater", x=x, y=0.0), x, low.op("mul", x=x, y=slope))


@lowers(aten._prelu_kernel_backward.default)
def _prelu_backward(low: Lowering, node: Node, grad: Value, x: Value, slope: Value) -> tuple[Value, Value]:
    positive = low.op("greater", x=x, y=0.0)
    to_x = low.select(positive, grad, low.op("mul", x=grad, y=slope))
    return to_x, low.select(positive, 0.0, low.op("mul", x=grad, y=x))
