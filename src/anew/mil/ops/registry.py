"""The table of operations and what a definition consists of.

A type rule (``infer``) takes the operands by parameter name - tensors as :class:`TensorType`, compile-time
parameters as plain Python values - and returns the result's type. A meaning takes the same names with torch tensors of
any floating dtype and returns the result at that precision; the emulator adds the engine's roundings around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from anew.errors import AnewError
from anew.mil.types import TensorType


class MilError(AnewError):
    """A program that is not well formed: an unknown operation, a missing parameter, shapes that do not fit."""


@dataclass(frozen=True)
class Param:
    """One parameter.

    ``kind`` is ``tensor``, ``constant`` (a tensor that is known when compiling), ``tensors`` (a tuple of values) or
    ``const`` (a number, string or list that the type rule sees). A parameter that is not required and has no default
    may be absent: rule and meaning are given None.
    """

    name: str
    kind: str
    type: str = ""  # of a const: "int32", "bool", "fp16", "string", or with [] a list
    default: Any = None
    required: bool = True

    @property
    def is_tensor(self) -> bool:
        """Whether the operand is one tensor."""
        return self.kind in ("tensor", "constant")


def tensor(name: str) -> Param:
    """A tensor operand."""
    return Param(name, "tensor")


def constant(name: str, required: bool = True) -> Param:
    """A tensor operand that must be known when compiling, as weights are."""
    return Param(name, "constant", required=required)


def const(name: str, type: str) -> Param:
    """A required parameter that must be a named constant."""
    return Param(name, "const", type)


def optional(name: str, type: str, default: Any) -> Param:
    """A constant parameter with the default that Core ML gives it; None: absent."""
    return Param(name, "const", type, default, required=False)


@dataclass(frozen=True)
class OpDef:
    """One operation.

    Attributes:
        name: as in MIL text.
        params: parameters in the order in which anew prints them.
        infer: type rule, ``infer(**operands) -> TensorType``; a tuple of them if the results are several.
        meaning: reference meaning on torch tensors, ``meaning(**operands) -> Tensor``, or a tuple likewise.
        family: how the engine computes it: ``mac`` (multiply-accumulate array), ``elementwise``, ``lookup``
            (function tables), ``reduce``, ``move`` (data movement, exact), ``constexpr`` (done when compiling).
        flops: floating-point operations of one evaluation, ``flops(first result, **operand types)``.
        bracketed_by: the parameter whose presence puts all parameters into the brackets of MIL text, where compilers
            want those of the older ``constexpr_*`` operations; empty for operations with arguments only.
    """

    name: str
    params: tuple[Param, ...]
    infer: Callable[..., Any]
    meaning: Callable[..., Any]
    family: str
    flops: Callable[..., int]
    bracketed_by: str = ""


OPS: dict[str, OpDef] = {}


def define(
    name: str,
    params: tuple[Param, ...],
    infer: Callable[..., Any],
    meaning: Callable[..., Any],
    family: str,
    flops: Callable[..., int] | None = None,
    bracketed_by: str = "",
) -> None:
    """Add an operation to the table; ``flops`` defaults to one per result element, none for moves and constexpr."""
    if flops is None:
        flops = no_flops if family in ("move", "constexpr") else one_per_element
    OPS[name] = OpDef(name, params, infer, meaning, family, flops, bracketed_by)


def lookup(name: str) -> OpDef:
    """Return an operation's definition; raises MilError naming it, and the nearest name, when there is none."""
    if name not in OPS:
        nearest = get_close_matches(name, OPS, 1)
        hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
        raise MilError(f"MIL operation '{name}' is not known to anew{hint}")
    return OPS[name]


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
