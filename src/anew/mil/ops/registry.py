"""The table of operations and what a definition consists of.

A type rule (``infer``) takes the operands by parameter name - tensors as :class:`TensorType`, compile-time
parameters as plain Python values - and returns the result's type. A meaning takes the same names with torch tensors of
any floating dtype and returns the result at that precision; the emulator adds the engine's roundings around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from anew.errors import AnewError
from anew.mil.types import TensorType


class MilError(AnewError):
    """A program that is not well formed: an unknown operation, a missing parameter, shapes that do not fit."""


@dataclass(frozen=True)
class Param:
    """One parameter. ``kind`` is ``tensor``, ``tensors`` (a tuple of values) or ``const`` (known when compiling)."""

    name: str
    kind: str
    type: str = ""  # of a const: "int32", "int32[]", "bool", "fp16", "string"
    default: Any = None
    required: bool = True


def tensor(name: str) -> Param:
    """A tensor operand."""
    return Param(name, "tensor")


def const(name: str, type: str) -> Param:
    """A required parameter that must be a named constant."""
    return Param(name, "const", type)


def optional(name: str, type: str, default: Any) -> Param:
    """A constant parameter with the default that Core ML gives it."""
    return Param(name, "const", type, default, required=False)


@dataclass(frozen=True)
class OpDef:
    """One operation.

    Attributes:
        name: as in MIL text.
        params: parameters in the order in which anew prints them.
        infer: type rule, ``infer(**operands) -> TensorType``.
        meaning: reference meaning on torch tensors, ``meaning(**operands) -> Tensor``.
        family: how the engine computes it: ``mac`` (multiply-accumulate array), ``elementwise``, ``lookup``
            (function tables), ``reduce``, ``move`` (data movement, exact).
        flops: floating-point operations of one evaluation, ``flops(result, **operand types)``.
    """

    name: str
    params: tuple[Param, ...]
    infer: Callable[..., TensorType]
    meaning: Callable[..., Tensor]
    family: str
    flops: Callable[..., int]


OPS: dict[str, OpDef] = {}


def define(
    name: str,
    params: tuple[Param, ...],
    infer: Callable[..., TensorType],
    meaning: Callable[..., Tensor],
    family: str,
    flops: Callable[..., int] | None = None,
) -> None:
    """Add an operation to the table; ``flops`` defaults to one per result element, none for data movement."""
    if flops is None:
        flops = no_flops if family == "move" else one_per_element
    OPS[name] = OpDef(name, params, infer, meaning, family, flops)


def lookup(name: str) -> OpDef:
    """Return an operation's definition; raises MilError naming it when there is none."""
    try:
        return OPS[name]
    except KeyError:
        raise MilError(f"MIL operation '{name}' is not known to anew; known: {', '.join(sorted(OPS))}") from None


def no_flops(result: TensorType, **_: Any) -> int:
    """Data movement does no arithmetic."""
    return 0


def one_per_element(result: TensorType, **_: Any) -> int:
    """One operation for each element of the result."""
    return result.numel


def shape_error(op: str, rule: str, **shapes: Any) -> MilError:
    """An error that names the operation, the shapes and the rule they break."""
    given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    return MilError(f"{op}: {rule} (got {given})")


def axis_of(op: str, axis: int, rank: int) -> int:
    """Return ``axis`` counted from 0; raises MilError when it is out of range."""
    if not -rank <= axis < rank:
        raise MilError(f"{op}: axis {axis} is outside a tensor of rank {rank}")
    return axis % rank


def broadcast(op: str, x: tuple[int, ...], y: tuple[int, ...]) -> tuple[int, ...]:
    """Numpy broadcasting of two static shapes; raises MilError when they do not fit."""
    rank = max(len(x), len(y))
    padded = [(1,) * (rank - len(s)) + s for s in (x, y)]
    out = []
    for a, b in zip(*padded, strict=True):
        if a != b and 1 not in (a, b):
            raise shape_error(op, "shapes do not broadcast", x=x, y=y)
        out.append(max(a, b) if 0 not in (a, b) else 0)
    return tuple(out)
