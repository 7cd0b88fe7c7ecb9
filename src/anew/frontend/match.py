"""Questions that graph rewrites ask of the nodes of a Dynamo graph."""

from __future__ import annotations

from typing import Any, TypeGuard

from torch import Tensor
from torch.fx import Node


def called(node: Any, *names: str) -> TypeGuard[Node]:
    """Whether a node calls a method or a function of one of these names."""
    if not isinstance(node, Node) or node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in names


def tensor_of(node: Any) -> Tensor | None:
    """The fake tensor that capture kept of a node's result; None if it is no tensor."""
    value = node.meta.get("example_value") if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None


def shape_of(node: Any) -> tuple[int, ...]:
    """The shape of a node's result; () if it is no tensor."""
    value = tensor_of(node)
    return () if value is None else tuple(value.shape)
