"""Lowering of comparisons, logic and selection.

The engine's truth values live between a comparison and the selection that reads it. Everywhere else - in ports, in
arithmetic, in logic, which the engine lacks - a truth value is an fp16 number, 1 or 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from anew.compiler.custom_ops import MASKED
from anew.compiler.lowering.table import FP16_OVERFLOW, Lowering, NotLowered, lowers
from anew.mil import Value

aten = torch.ops.aten

Scalar = float | int


def truth(low: Lowering, comparison: Value) -> Value:
    """The numbers 1 and 0 of the engine's truth values."""
    numbers = low.select(comparison, 1.0, 0.0)
    low.comparisons[numbers] = comparison
    return numbers


def condition(low: Lowering, numbers: Value) -> Value:
    """The engine's truth values of the numbers 1 and 0."""
    return low.comparisons.get(numbers) or low.op("not_equal", x=numbers, y=0.0)


def _comparison(kind: str) -> Callable[..., Value]:
    return lambda low, node, x, y: truth(low, low.op(kind, x=x, y=y))


lowers(aten.eq.Tensor, aten.eq.Scalar)(_comparison("equal"))
lowers(aten.ne.Tensor, aten.ne.Scalar)(_comparison("not_equal"))
lowers(aten.gt.Tensor, aten.gt.Scalar)(_comparison("greater"))
lowers(aten.ge.Tensor, aten.ge.Scalar)(_comparison("greater_equal"))
lowers(aten.lt.Tensor, aten.lt.Scalar)(_comparison("less"))
lowers(aten.le.Tensor, aten.le.Scalar)(_comparison("less_equal"))


def _logic(kind: str) -> Callable[..., Value]:
    def lower(low: Lowering, node: Node, x: Value, y: Value) -> Value:
        _need_bool(node)
        return low.op(kind, x=x, y=y)

    return lower


def _need_bool(node: Node) -> None:
    if any(n.meta["val"].dtype != torch.bool for n in node.all_input_nodes):
        raise NotLowered("logic of numbers; anew takes it of truth values only")


lowers(aten.logical_and.default, aten.bitwise_and.Tensor)(_logic("mul"))
lowers(aten.logical_or.default, aten.bitwise_or.Tensor)(_logic("maximum"))


@lowers(aten.logical_xor.default, aten.bitwise_xor.Tensor)
def _xor(low: Lowering, node: Node, x: Value, y: Value) -> Value:
    _need_bool(node)
    return truth(low, low.op("not_equal", x=x, y=y))


@lowers(aten.logical_not.default, aten.bitwise_not.default)
def _not(low: Lowering, node: Node, x: Value) -> Value:
    _need_bool(node)
    return low.op("sub", x=1.0, y=x)


@lowers(aten.where.self)
def _where(low: Lowering, node: Node, mask: Value, x: Value | Scalar, y: Value | Scalar) -> Value:
    return low.select(condition(low, mask), _held(x), _held(y))


@lowers(aten.masked_fill.Scalar)
def _masked_fill(low: Lowering, node: Node, x: Value, mask: Value, number: Scalar) -> Value:
    return low.select(condition(low, mask), _held(number), x)


def _held(x: Any) -> Any:
    """A number below fp16 that is selected is a mask's minus infinity, which never reaches a program."""
    return MASKED if isinstance(x, (int, float)) and x <= -FP16_OVERFLOW else x


@lowers(aten.clamp.default, aten.clamp.Tensor)
def _clamp(
    low: Lowering, node: Node, x: Value, least: Value | Scalar | None = None, most: Value | Scalar | None = None
) -> Value:
    if least is not None:
        x = low.op("maximum", x=x, y=least)
    return x if most is None else low.op("minimum", x=x, y=most)


@lowers(aten.clamp_min.default, aten.clamp_min.Tensor)
def _clamp_min(low: Lowering, node: Node, x: Value, least: Value | Scalar) -> Value:
    return low.op("maximum", x=x, y=least)


@lowers(aten.clamp_max.default, aten.clamp_max.Tensor)
def _clamp_max(low: Lowering, node: Node, x: Value, most: Value | Scalar) -> Value:
    return low.op("minimum", x=x, y=most)
