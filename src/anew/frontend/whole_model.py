"""``torch.compile(model, backend="anew")``: repeated layers become regions, the rest stays PyTorch.

Dynamo notes of each node which modules it was called in. Nodes of one layer are cut out as one graph; equal layers
share a region, so the number of programs does not grow with depth.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch._ops import HigherOrderOperator
from torch.fx import GraphModule, Node
from torch.fx.passes.split_module import split_module

from anew.frontend.captured import Captured
from anew.frontend.session import Session

#: The name of a member of a list of modules: the list's own name, and a position.
_MEMBER = re.compile(r"(?P<list>.+)\.\d+")


def by_layers(session: Session, module: GraphModule) -> Callable[..., Any]:
    """Return a callable with the captured graph's signature: its layers in regions, or all of it in one if it has none.

    A layer is a module in a list (``nn.ModuleList``, ``nn.Sequential``) of two or more of its class with modules of
    their own; the outermost list counts.
    """
    layers = _layers(module)
    if len(set(layers.values())) < 2:
        return Captured(session, module)
    parts = _numbered(module, layers)
    cut = split_module(module, module, lambda node: parts[node], keep_original_order=True)
    names = {f"submod_{parts[node]}" for node in layers}
    for name in names & {name for name, _ in cut.named_children()}:
        cut.set_submodule(name, _Layer(session, cut.get_submodule(name)))
    return cut.forward


class _Layer(nn.Module):
    """A layer's part of the graph, called as the graph calls it."""

    def __init__(self, session: Session, part: Any) -> None:
        super().__init__()
        self.captured = Captured(session, part)
        self.single = isinstance(part.graph.output_node().args[0], Node)

    def forward(self, *args: Any) -> Any:
        """Run the region; one bare result where the graph expects one."""
        results = self.captured(*args)
        return results[0] if self.single else results


def _layers(module: GraphModule) -> dict[Node, str]:
    """The layer each operation belongs to, by the layer's path; operations outside layers are left out."""
    operations = [n for n in module.graph.nodes if n.op not in ("placeholder", "output", "get_attr")]
    paths = {n: list(_modules_around(n)) for n in operations}
    members: dict[tuple[str, Any], set[str]] = defaultdict(set)
    for node, around in paths.items():
        body = isinstance(node.target, HigherOrderOperator)  # such as a checkpoint: the modules are called inside
        for path, kind in around if body else around[:-1]:  # the innermost module has none of its own
            if match := _MEMBER.fullmatch(path):
                members[match["list"], kind].add(path)
    repeated = {path for found in members.values() if len(found) > 1 for path in found}
    outermost = {n: next((path for path, _ in around if path in repeated), None) for n, around in paths.items()}
    return {n: path for n, path in outermost.items() if path is not None}


def _modules_around(node: Node) -> Iterator[tuple[str, Any]]:
    """Path and class of the modules that a node was called in, outermost first."""
    yield from (node.meta.get("nn_module_stack") or {}).values()


def _numbered(module: GraphModule, layers: dict[Node, str]) -> dict[Node, int]:
    """Number the stretches of the graph in which one layer runs, or none does."""
    number, last = 0, None
    parts: dict[Node, int] = {}
    for node in module.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if layers.get(node) != last:
            number, last = number + 1, layers.get(node)
        parts[node] = number
    return parts
