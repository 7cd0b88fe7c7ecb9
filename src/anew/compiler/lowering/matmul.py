"""Lowering of matrix products."""

from __future__ import annotations

import torch
from torch.fx import Node

from anew.compiler.lowering.table import Lowering, NotLowered, lowers
from anew.mil import Value

aten = torch.ops.aten


@lowers(aten.mm.default, aten.bmm.default)
def _mm(low: Lowering, node: Node, x: Value, y: Value) -> Value:
    return low.matmul(x, y)


@lowers(aten.addmm.default)
def _addmm(low: Lowering, node: Node, bias: Value, x: Value, y: Value, beta: float = 1, alpha: float = 1) -> Value:
    if beta != 1 or alpha != 1:
        raise NotLowered("addmm with beta or alpha other than 1")
    return low.op("add", x=low.matmul(x, y), y=bias)
