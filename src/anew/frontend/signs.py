"""Signs of parts that are put together and multiplied go to what they are multiplied with, where that is smaller.

So ``cat(-x2, x1) * sin``, half of a rotary embedding, is ``cat(x2, x1) * cat(-sin1, sin2)``: the sines are those of all
heads and sequences. The backward pass follows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from anew.frontend.match import called, shape_of, tensor_of


def signed(x: Tensor, dim: int, parts: tuple[tuple[int, bool], ...]) -> Tensor:
    """x with the sign of some parts of an axis turned; each part is its length and whether it is one of them."""
    pieces = x.split([length for length, _ in parts], dim)
    return torch.cat([-piece if turned else piece for piece, (_, turned) in zip(pieces, parts, strict=True)], dim)


def rewrite(node: Node) -> None:
    """Turn ``cat(-a, b) * c`` into ``cat(a, b) * cat(-c1, c2)``, if this is the multiplication and c is smaller."""
    if not called(node, "mul") or len(node.args) != 2:
        return
    for joined, factor in (node.args, node.args[::-1]):
        if called(joined, "cat") and _pieces(joined) and len(joined.users) == 1 and isinstance(factor, Node):
            _move(node, joined, factor)


def _move(node: Node, joined: Node, factor: Node) -> None:
    pieces, dim = _pieces(joined), _dim(joined)
    small, large = shape_of(factor), shape_of(joined)
    if dim is None or not any(called(p, "neg") for p in pieces) or math.prod(small) >= math.prod(large):
        return
    if len(small) < -dim or small[dim] != large[dim]:
        return
    parts = tuple((shape_of(p)[dim], called(p, "neg")) for p in pieces)
    node.replace_input_with(factor, _signed(node, factor, dim, parts))
    joined.args = ([p.args[0] if called(p, "neg") else p for p in pieces], *joined.args[1:])


def _pieces(joined: Node) -> list[Any]:
    """What is put together, if the call lists it."""
    pieces = joined.args[0] if joined.args else None
    return list(pieces) if isinstance(pieces, (list, tuple)) else []


def _dim(joined: Node) -> int | None:
    """The axis along which pieces are put together, counted from the last one, -1; None if it is not known."""
    dim = joined.kwargs.get("dim", joined.args[1] if len(joined.args) > 1 else 0)
    rank = len(shape_of(joined))
    return dim % rank - rank if isinstance(dim, int) and all(shape_of(p) for p in _pieces(joined)) else None


def _signed(before: Node, factor: Node, dim: int, parts: tuple[tuple[int, bool], ...]) -> Node:
    """The factor with those signs, made once however many tensors it multiplies."""
    args = (factor, dim, parts)
    for user in factor.users:
        if user.target is signed and user.args == args:
            return user
    with before.graph.inserting_before(before):
        new = before.graph.call_function(signed, args)
    new.meta["example_value"] = tensor_of(factor)
    return new
