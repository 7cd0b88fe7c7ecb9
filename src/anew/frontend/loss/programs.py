"""The programs of a tile: small functions of PyTorch, traced to ATen and compiled like any other graph.

The label's column is left out of every sum. What it contributes the host adds in fp32, see :mod:`.region`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from anew.compiler.compile import lower_graph
from anew.frontend.region import GraphCall
from anew.frontend.session import CompiledGraph, Session
from anew.frontend.weight_store import WeightStore


@dataclass(frozen=True)
class Shape:
    """Sizes of a tile: rows (tokens) and columns (of the vocabulary) of its logits, features, columns of a block."""

    rows: int
    columns: int
    features: int
    block: int

    def ports(self) -> dict[str, tuple[int, ...]]:
        """The arguments that both programs take."""
        blocks = self.columns // self.block
        return {
            "hidden": (self.rows, self.features),
            "weight": (self.columns, self.features),
            "column": (blocks, self.block),
            "label_block": (self.rows, blocks),
            "label_place": (self.rows, self.block),
        }


def _logits(hidden: Tensor, weight: Tensor, column: Tensor, label_block: Tensor, label_place: Tensor) -> Tensor:
    """Logits [rows, columns], far below all others in the column of a row's label."""
    mask = label_block.unsqueeze(2) * label_place.unsqueeze(1) + column
    return hidden @ weight.t() + mask.view(hidden.shape[0], weight.shape[0])


def forward(
    hidden: Tensor, weight: Tensor, column: Tensor, label_block: Tensor, label_place: Tensor
) -> tuple[Tensor, Tensor]:
    """The largest logit of each row, [rows, 1], and the sums of ``exp(logit - largest)`` of each block, [rows, blocks].

    The engine adds in narrow partial sums; over the few columns of a block they hardly round. The host adds the blocks.
    """
    logits = _logits(hidden, weight, column, label_block, label_place)
    largest = logits.amax(1, keepdim=True)
    blocks = torch.exp(logits - largest).view(*label_block.shape, column.shape[1])
    return largest, blocks.sum(2)


def backward(*, hidden: bool, weight: bool) -> Callable[..., tuple[Tensor, ...]]:
    """The function of a tile's backward program, for the gradients of the hidden states and of the weight.

    It takes the arguments of the forward program, the largest logit of each row over all tiles, [rows, 1], and for the
    weight's gradient a cotangent [rows, n]. With ``mass = exp(logit - largest)`` it returns ``mass @ weight``,
    [rows, features], and ``mass.T @ cotangent``, [columns, n].
    """

    def run(*args: Tensor) -> tuple[Tensor, ...]:
        largest, *cotangent = args[5:]
        mass = torch.exp(_logits(*args[:5]) - largest)
        results = (mass @ args[1],) if hidden else ()
        return (*results, mass.t() @ cotangent[0]) if weight else results

    return run


def compile_function(
    session: Session, weights: WeightStore, name: str, function: Callable[..., object], ports: Mapping[str, tuple]
) -> GraphCall:
    """Compile a function of fp32 tensors; ``ports`` gives their names and shapes in order.

    A tensor named ``weight`` is uploaded once a step, one named ``cotangent`` is scaled as such. Raises NotLowered
    when the chip does not take it.
    """
    module = _trace(function, list(ports.values()))
    names = [n.name for n in module.graph.nodes if n.op == "placeholder"]
    kinds = {name: port for name, port in zip(names, ports, strict=True) if port in ("weight", "cotangent")}
    lowered = lower_graph(module, name, session.device.chip, kinds, {})
    plan = lowered.plan()
    session.plans.append(plan)
    session.graphs.append(CompiledGraph.of(module, name, set()))
    return GraphCall(name, session.segment(plan, lowered.plan, weights), session)


def _trace(function: Callable[..., object], shapes: list[tuple[int, ...]]) -> GraphModule:
    with FakeTensorMode():
        return make_fx(function)(*[torch.empty(shape) for shape in shapes])
