"""A captured graph, compiled for the sizes it is called with.

Dynamo captures the second length of an input with symbolic sizes. Programs have fixed ones, so each combination of
sizes gets a region, made on its first call.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from anew.frontend.region import Region, region_for
from anew.frontend.session import Session


class Captured:
    """Calls the region that fits the sizes of the arguments.

    Args:
        session: compiles the regions.
        module: the graph as captured; it stays as it is.
    """

    def __init__(self, session: Session, module: GraphModule) -> None:
        self.session = session
        self.module = module
        self.symbolic = any(_is_symbolic(n) for n in module.graph.nodes if n.op == "placeholder")
        self.regions: dict[tuple[Any, ...], tuple[Region, list[Any]]] = {}

    def __call__(self, *args: Any) -> list[Any]:
        """Run on tensors, and ints where the graph takes sizes; results as the graph's, tensors and numbers."""
        key = tuple(tuple(x.shape) if isinstance(x, Tensor) else x for x in args) if self.symbolic else ()
        tensors = [x for x in args if isinstance(x, Tensor)]
        if key not in self.regions:
            with self.session.lock:
                module = specialize(self.module, args) if self.symbolic else self.module
                numbers = _take_numbers(module)
                self.regions[key] = region_for(self.session, module, tensors), numbers
        region, numbers = self.regions[key]
        results = iter(region(*tensors))
        return [next(results) if number is None else number for number in numbers]


def _is_symbolic(placeholder: Node) -> bool:
    value = placeholder.meta.get("example_value")
    sizes = tuple(value.shape) if isinstance(value, Tensor) else (value,)
    return any(isinstance(n, torch.SymInt) for n in sizes)


def specialize(module: GraphModule, args: Sequence[Any]) -> GraphModule:
    """A copy of a captured graph with numbers in place of sizes, those that ``args`` (tensors and ints) lead to.

    Its inputs are the tensors of ``args``.
    """
    special = GraphModule(module, copy.deepcopy(module.graph))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(x, static_shapes=True) if isinstance(x, Tensor) else x for x in args]
        _Values(special).run(*fakes)
    for node in reversed(list(special.graph.nodes)):
        if isinstance(node.meta.get("example_value"), (int, float)):
            _replace(node, node.meta["example_value"])
            special.graph.erase_node(node)
    special.recompile()
    return special


class _Values(Interpreter):
    """Runs a graph and keeps what each node gives."""

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        n.meta["example_value"] = value = super().run_node(n)
        return value


def _replace(node: Node, number: float) -> None:
    for user in list(node.users):
        user.args, user.kwargs = map_arg((user.args, dict(user.kwargs)), lambda n: number if n is node else n)


def _take_numbers(module: GraphModule) -> list[Any]:
    """Leave a graph only its tensors as results; returns the number at each position that had one, None elsewhere."""
    output = module.graph.output_node()
    results = list(output.args[0]) if isinstance(output.args[0], (tuple, list)) else [output.args[0]]
    output.args = (tuple(r for r in results if isinstance(r, Node)),)
    module.recompile()
    return [None if isinstance(r, Node) else r for r in results]
