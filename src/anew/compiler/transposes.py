"""Transposes in ATen graphs that products of matrices take over: a flag of a matmul does what they do."""

from __future__ import annotations

import torch
from torch.fx import Node

from anew.compiler.lowering import shape_of

aten = torch.ops.aten

#: Products of matrices.
PRODUCTS = (aten.mm.default, aten.bmm.default)


def is_left_to_product(node: Node) -> bool:
    """Whether a node transposes matrices that only products read, or that a product gives and nothing else reads."""
    return turns(node) and (_meets_products(node) or _is_of_product(node))


def turns(node: Node) -> bool:
    """Whether a node transposes the last two axes."""
    if node.target is aten.t.default:
        return len(shape_of(node)) == 2
    if node.target is not aten.transpose.int:
        return False
    rank = len(shape_of(node))
    return {int(axis) % rank for axis in node.args[1:]} == {rank - 2, rank - 1}  # type: ignore[arg-type]


def _meets_products(node: Node) -> bool:
    return bool(node.users) and all(
        user.target in PRODUCTS
        or (user.target is aten.addmm.default and user.args[0] is not node)
        or (turns(user) and _meets_products(user))
        for user in node.users
    )


def _is_of_product(node: Node) -> bool:
    source = node.all_input_nodes[0]
    return len(source.users) == 1 and (source.target in PRODUCTS or (turns(source) and _is_of_product(source)))
