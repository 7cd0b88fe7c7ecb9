"""Numbers that a graph holds as tensors without axes, such as the 0 of a ``where``.

The engine has no tensor of rank 0, but its operations take numbers: a number is no value of its own, and belongs to the
one operation that reads it.
"""

from __future__ import annotations

from collections.abc import Set

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten


def number_of(node: Node) -> float | int | None:
    """The number that a node makes a tensor of; None for any other node."""
    if node.target is aten.scalar_tensor.default:
        return node.args[0]  # type: ignore[return-value]
    if node.target is aten.full.default and not node.args[0]:
        return node.args[1]  # type: ignore[return-value]
    return None


def one_reader_each(module: GraphModule) -> None:
    """Give every reader of a number a node of its own, in place, so that no program's border lies between them."""
    for node in list(module.graph.nodes):
        if number_of(node) is None:
            continue
        for user in list(node.users)[1:]:
            with module.graph.inserting_before(node):
                user.replace_input_with(node, module.graph.node_copy(node))
    module.recompile()


def numbers_of_host(module: GraphModule, host: Set[Node]) -> set[Node]:
    """The numbers that an operation of the host reads, or that the graph returns."""
    numbers = (node for node in module.graph.nodes if number_of(node) is not None)
    return {n for n in numbers if any(user in host or user.op == "output" for user in n.users)}
