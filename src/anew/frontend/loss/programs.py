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

from anew.chips import Chip
from anew.compiler.compile import Lowered, lower_graph
from anew.frontend.region import GraphCall
from anew.frontend.session import CompiledGraph, Session
from anew.frontend.weight_store import WeightStore

#: Shapes of arguments by name, in their order.
Ports = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Shape:
    """Sizes of a tile: rows (tokens) and columns (of the vocabulary) of its logits, features, columns of a block.

    ``column`` says whether something is added to each column: a bias, or ``MASKED`` where another tile has it.
    """

    rows: int
    columns: int
    features: int
    block: int
    column: bool

    def ports(self) -> Ports:
        """The arguments from which logits are computed."""
        blocks = self.columns // self.block
        ports: Ports = {
            "hidden": (self.rows, self.features),
            "weight": (self.columns, self.features),
            "label_block": (self.rows, blocks),
            "label_place": (self.rows, self.block),
        }
        return ports | ({"column": (blocks, self.block)} if self.column else {})

    def backward_ports(self, width: int, *, kept: bool) -> Ports:
        """The arguments of the backward program; ``width``: columns of its cotangent, if it has one."""
        cotangent: Ports = {"cotangent": (self.rows, width)} if width else {}
        if not kept:
            return self.ports() | {"largest": (self.rows, 1)} | cotangent
        ports: Ports = {"weight": (self.columns, self.features), "mass": (self.rows, self.columns)}
        return ports | ({"share": (self.rows, 1)} | cotangent if width else {})


def _logits(hidden: Tensor, weight: Tensor, label_block: Tensor, label_place: Tensor, *column: Tensor) -> Tensor:
    """Logits [rows, columns], far below all others in the column of a row's label."""
    mask = label_block.unsqueeze(2) * label_place.unsqueeze(1)
    for added in column:
        mask = mask + added
    return hidden @ weight.t() + mask.view(hidden.shape[0], weight.shape[0])


def forward(*, keep: bool) -> Callable[..., tuple[Tensor, ...]]:
    """The function of a tile's forward program, of the arguments of :meth:`Shape.ports`.

    It returns the largest logit of each row, [rows, 1], the sums of ``mass = exp(logit - largest)`` of each block,
    [rows, blocks], and what is kept: ``mass`` [rows, columns].

    The engine adds in narrow partial sums; over the few columns of a block they hardly round. The host adds the blocks.
    """

    def run(*args: Tensor) -> tuple[Tensor, ...]:
        _, _, label_block, label_place, *_ = args
        logits = _logits(*args)
        largest = logits.amax(1, keepdim=True)
        mass = torch.exp(logits - largest)
        sums = mass.view(*label_block.shape, label_place.shape[1]).sum(2)
        return (largest, sums, mass) if keep else (largest, sums)

    return run


def mass_again(*args: Tensor) -> Tensor:
    """What the backward program computes again: ``exp(logit - largest)`` of arguments as the forward one takes them.

    After them comes the largest logit of each row over all tiles, [rows, 1].
    """
    *given, largest = args
    return torch.exp(_logits(*given) - largest)


def backward(*, hidden: bool, weight: bool, kept: bool) -> Callable[..., tuple[Tensor, ...]]:
    """The function of a tile's backward program, for the gradients of the hidden states and of the weight.

    It takes the arguments of :meth:`Shape.backward_ports`. With ``mass = exp(logit - largest)`` it returns
    ``mass @ weight``, [rows, features], and ``mass.T @ cotangent``, [columns, n]. A mass that was kept is one by the
    largest logit of the tile: ``share`` is what brings it to the largest of all, [rows, 1]. The host multiplies
    ``mass @ weight`` by it.
    """

    def run(*args: Tensor) -> tuple[Tensor, ...]:
        given = args[:-1] if weight else args
        if kept:
            matrix, mass, *share = given
        else:
            matrix, mass, share = args[1], mass_again(*given), []
        results = (mass @ matrix,) if hidden else ()
        if not weight:
            return results
        cotangent = args[-1] * share[0] if share else args[-1]
        return (*results, mass.t() @ cotangent)

    return run


def compile_function(
    session: Session,
    weights: WeightStore,
    name: str,
    function: Callable[..., object],
    ports: Ports,
    saved: Mapping[int, bool] | None = None,
) -> GraphCall:
    """Compile a function of fp32 tensors; ``ports`` gives their names and shapes in order.

    A tensor named ``weight`` is uploaded once a step, one named ``cotangent`` is scaled as such. Results that are
    ``saved`` (by position) stay in fp16 buffers. Raises NotLowered when the chip does not take it.
    """
    module = _trace(function, ports)
    lowered = _lower(module, name, session.device.chip, ports, saved or {})
    plan = lowered.plan()
    session.plans.append(plan)
    session.graphs.append(CompiledGraph.of(module, name, set()))
    return GraphCall(name, session.segment(plan, lowered.plan, weights), session)


def lower(function: Callable[..., object], name: str, chip: Chip, ports: Ports) -> Lowered:
    """Lower a function as :func:`compile_function` does."""
    return _lower(_trace(function, ports), name, chip, ports, {})


def _lower(module: GraphModule, name: str, chip: Chip, ports: Ports, saved: Mapping[int, bool]) -> Lowered:
    names = [n.name for n in module.graph.nodes if n.op == "placeholder"]
    kinds = {name: port for name, port in zip(names, ports, strict=True) if port in ("weight", "cotangent")}
    return lower_graph(module, name, chip, kinds, saved)


def _trace(function: Callable[..., object], ports: Ports) -> GraphModule:
    with FakeTensorMode():
        return make_fx(function)(*[torch.empty(shape) for shape in ports.values()])
