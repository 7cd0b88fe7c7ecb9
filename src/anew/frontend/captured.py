"""A captured graph, compiled for the sizes it is called with.

Dynamo captures the second length of an input with symbolic sizes, and a float that changed as an input. Programs have
fixed sizes and numbers, so each combination gets a region, made on its first call.
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
        placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
        self.floats = {i for i, n in enumerate(placeholders) if _is_float(n)}
        self.symbolic = bool(self.floats) or any(_is_symbolic(n) for n in placeholders)
        self.regions: dict[tuple[Any, ...], tuple[Region, list[Any]]] = {}

    def __call__(self, *args: Any) -> list[Any]:
        """Run on tensors, and ints where the graph takes sizes; results as the graph's, tensors and numbers."""
        args = tuple(x.item() if i in self.floats else x for i, x in enumerate(args)) if self.floats else args
        region, numbers = self._fitting(args)
        results = iter(region(*[x for x in args if isinstance(x, Tensor)]))
        return [next(results) if number is None else number for number in numbers]

    def _fitting(self, args: Sequence[Any]) -> tuple[Region, list[Any]]:
        """The region for these arguments, and the numbers among its results by position."""
        key = tuple(tuple(x.shape) if isinstance(x, Tensor) else x for x in args) if self.symbolic else ()
        with self.session.lock:
            if key not in self.regions:
                module = specialize(self.module, args) if self.symbolic else self.module
                numbers = _take_numbers(module)
                region = region_for(self.session, module, [x for x in args if isinstance(x, Tensor)])
                self.regions[key] = region, numbers
            return self.regions[key]


def _is_symbolic(placeholder: Node) -> bool:
    value = placeholder.meta.get("example_value")
    sizes = tuple(value.shape) if isinstance(value, Tensor) else (value,)
    return any(isinstance(n, torch.SymInt) for n in sizes)


def _is_float(placeholder: Node) -> bool:
    """Whether this stands for a Python float that varies: Dynamo passes it as a tensor and takes it out again."""
    return bool(placeholder.users) and all(u.op == "call_method" and u.target == "item" for u in placeholder.users)


def specialize(module: GraphModule, args: Sequence[Any]) -> GraphModule:
    """A copy of a captured graph with numbers in place of sizes, those that ``args`` (tensors and numbers) lead to.

    Its inputs are the tensors of ``args``.
    """
    special = GraphModule(module, copy.deepcopy(module.graph))
    for placeholder, x in zip(special.graph.find_nodes(op="placeholder"), args, strict=True):
        if isinstance(x, float):
            for item in list(placeholder.users):
                item.replace_all_uses_with(placeholder)
                special.graph.erase_node(item)
    special.recompile()
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
