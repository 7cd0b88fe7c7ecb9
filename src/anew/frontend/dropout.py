"""Dropout with a mask that the host draws: as eager PyTorch draws it, from torch's generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

DROPOUT = (F.dropout, torch.dropout)


def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Torch's dropout, out of place: the same draws for the same seed, layout of x and order of calls.

    The draw is a bool tensor, a byte an element; it is what the backward keeps. Probabilities of 0 and 1 draw nothing,
    as in PyTorch.
    """
    if not training or p == 0:
        return x
    if p == 1:
        return x * 0.0
    return x * _drawn(x, 1 - p) * (1 / (1 - p))


def _drawn(x: Tensor, p: float) -> Tensor:
    """A bool tensor of x's shape, True with probability p; drawn in the order of x's memory, as PyTorch does."""
    strides = torch.empty_like(x).stride()
    order = sorted(range(x.dim()), key=lambda axis: -strides[axis])
    drawn = torch.empty([x.shape[axis] for axis in order], dtype=torch.bool).bernoulli_(p)
    return drawn.permute([order.index(axis) for axis in range(x.dim())])


def rewrite(node: Node) -> None:
    """Replace torch's dropout; in place it stays as it is, and AOTAutograd takes it apart."""
    inplace = node.kwargs.get("inplace", node.args[3] if len(node.args) > 3 else False)
    if node.op == "call_function" and node.target in DROPOUT and not inplace:
        names = {"input": "x", "train": "training"}
        node.kwargs = {names.get(name, name): value for name, value in node.kwargs.items()}
        node.target = dropout
