"""Comparisons, and the selection that they feed. Truth values exist between the two only: a port is never bool."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from anew.mil.ops.registry import MilError, broadcast, define, shape_error, tensor
from anew.mil.types import TensorType


def _comparison(name: str, meaning: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Define a comparison; its meaning gives 1 and 0 in the operands' dtype, as all meanings keep to one dtype."""

    def infer(x: TensorType, y: TensorType) -> TensorType:
        if x.dtype != y.dtype:
            raise MilError(f"{name}: x is {x.dtype} but y is {y.dtype}; cast one of them")
        return TensorType("bool", broadcast(name, x.shape, y.shape))

    define(name, (tensor("x"), tensor("y")), infer, lambda x, y: meaning(x, y).to(x.dtype), "elementwise")


_comparison("equal", torch.eq)
_comparison("not_equal", torch.ne)
_comparison("greater", torch.gt)
_comparison("greater_equal", torch.ge)
_comparison("less", torch.lt)
_comparison("less_equal", torch.le)


def _need_bool(op: str, name: str, x: TensorType) -> None:
    if x.dtype != "bool":
        raise MilError(f"{op}: {name} is {x.dtype}; it takes the result of a comparison, which is bool")


def _logical_not_type(x: TensorType) -> TensorType:
    _need_bool("logical_not", "x", x)
    return x


define("logical_not", (tensor("x"),), _logical_not_type, lambda x: (x == 0).to(x.dtype), "elementwise")


def _select_type(cond: TensorType, a: TensorType, b: TensorType) -> TensorType:
    _need_bool("select", "cond", cond)
    if a.dtype != b.dtype:
        raise MilError(f"select: a is {a.dtype} but b is {b.dtype}; cast one of them")
    shape = broadcast("select", a.shape, b.shape)
    if broadcast("select", cond.shape, shape) != shape:
        raise shape_error("select", "a and b give the result its shape", cond=cond.shape, a=a.shape, b=b.shape)
    return TensorType(a.dtype, shape)


define(
    "select",
    (tensor("cond"), tensor("a"), tensor("b")),
    _select_type,
    lambda cond, a, b: torch.where(cond != 0, a, b),
    "elementwise",
)
