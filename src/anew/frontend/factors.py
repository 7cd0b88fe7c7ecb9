"""A number that multiplies a linear layer's result multiplies its input instead, where that has fewer elements.

So adapters scale the few columns between their two matrices, forward and backward, and not the many behind them.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch.fx import Node

from anew.frontend.match import called, tensor_of


def rewrite(node: Node) -> None:
    """Turn ``linear(x, weight) * number`` into ``linear(x * number, weight)``, if this is the multiplication."""
    if not called(node, "mul") or len(node.args) != 2:
        return
    for product, number in (node.args, node.args[::-1]):
        if isinstance(number, (int, float)) and _narrows(product):
            x, *weight = product.args
            with node.graph.inserting_before(product):
                scaled = node.graph.call_function(torch.mul, (x, number))
            scaled.meta["example_value"] = tensor_of(x)
            product.args = (scaled, *weight)
            node.replace_all_uses_with(product)
            node.graph.erase_node(node)
            return


def _narrows(product: object) -> TypeGuard[Node]:
    """Whether a node is a linear layer without bias that only one node reads, with more results than inputs."""
    if not called(product, "linear") or len(product.users) != 1 or product.kwargs or len(product.args) < 2:
        return False
    before, after = tensor_of(product.args[0]), tensor_of(product)
    if product.args[2:] not in ((), (None,)) or before is None or after is None:
        return False
    return before.shape[-1] < after.shape[-1]
