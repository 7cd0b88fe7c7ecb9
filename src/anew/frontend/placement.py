"""Placement: what cannot run on the engine runs on the host, in the open.

Nodes that lower are gathered into programs by torch's capability partitioner; the rest stays in the graph and runs in
PyTorch, fp32. Every such node is reported with the rule that keeps it off the engine; ``strict`` makes it an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase

from anew.compiler.compile import depends_on, why_not
from anew.errors import AnewError
from anew.frontend.partition import is_view
from anew.frontend.recorder import node_flops


class PlacementError(AnewError):
    """``strict`` was asked for and an operation cannot run on the engine."""


class PlacementWarning(UserWarning):
    """Part of a region runs on the host."""


@dataclass(frozen=True)
class HostOperation:
    """A graph node that runs on the host: where, what, and the rule that keeps it off the engine.

    ``flops`` are those of a matmul or convolution, by PyTorch's formulas.
    """

    region: str
    operation: str
    shape: tuple[int, ...]
    rule: str
    source: str
    flops: int = 0


#: Metadata key: whether a value is linear in the cotangents.
_LINEAR = "anew_linear"

MakeSegment = Callable[[GraphModule, str, Mapping[str, str]], Callable[[Sequence[Tensor]], list[Any]]]


def host_operations(module: GraphModule, name: str, chip: Any) -> dict[Node, HostOperation]:
    """The nodes of a graph that cannot run on the engine."""
    found: dict[Node, HostOperation] = {}
    for node in module.graph.nodes:
        rule = why_not(node, chip) if node.op == "call_function" else None
        if rule is not None:
            shape = tuple(getattr(node.meta.get("val"), "shape", ()))
            found[node] = HostOperation(name, str(node.target), shape, rule, _source(node), node_flops(node))
    return found


def report(found: Sequence[HostOperation], *, strict: bool) -> None:
    """Warn of what runs on the host; raises PlacementError naming the first one when ``strict``."""
    if not found:
        return
    first = found[0]
    sentence = (
        f"{first.region}: '{first.operation}' {list(first.shape)} cannot run on the engine: {first.rule}{first.source}"
    )
    if strict:
        raise PlacementError(sentence)
    more = f" ({len(found) - 1} more operations likewise)" if len(found) > 1 else ""
    warnings.warn(f"{sentence}; it runs on the host{more}", PlacementWarning, stacklevel=2)


def returned_views(module: GraphModule) -> set[Node]:
    """Views of inputs that the graph returns: nothing to compute, they stay tensors of the host."""
    views: set[Node] = set()
    for result in module.graph.output_node().all_input_nodes:
        chain = []
        node = result
        while is_view(node):
            chain.append(node)
            node = node.all_input_nodes[0]
        if node.op == "placeholder":
            views.update(chain)
    return views


def split(
    module: GraphModule, name: str, host: set[Node], kinds: Mapping[str, str], make: MakeSegment
) -> Callable[[Sequence[Tensor]], Any]:
    """Return a callable of the graph's arguments that runs ``host`` in PyTorch and all else in programs."""
    cotangents = depends_on(module.graph, {n for n, kind in kinds.items() if kind == "cotangent"})
    for node in module.graph.nodes:  # in the metadata, as fusing renames nodes
        node.meta[_LINEAR] = node.name in cotangents
    partitioner = CapabilityBasedPartitioner(module, _NotOn(host), allows_single_node_partition=True)
    partitions = [p for p in partitioner.propose_partitions() if not all(is_view(n) for n in p.nodes)]
    fused = partitioner.fuse_partitions(partitions)
    for node in fused.graph.nodes:
        if node.op != "call_module":
            continue
        sub = fused.get_submodule(str(node.target))
        assert isinstance(sub, GraphModule)
        inner: dict[str, str] = {}
        for placeholder, argument in zip(_placeholders(sub), node.args, strict=True):
            placeholder.meta = dict(argument.meta)
            if argument.meta[_LINEAR]:
                inner[placeholder.name] = "cotangent"
            elif kinds.get(placeholder.name) == "weight":
                inner[placeholder.name] = "weight"
        segment = make(sub, f"{name} {node.target}", inner)
        fused.set_submodule(str(node.target), _SegmentModule(segment, single=not _returns_tuple(sub)))
    expected = [n.meta["val"].dtype for n in _placeholders(fused)]

    def call(args: Sequence[Tensor]) -> Any:
        return fused(*[a.to(dtype) for a, dtype in zip(args, expected, strict=True)])

    return call


class _NotOn(OperatorSupportBase):
    def __init__(self, host: set[Node]) -> None:
        self.host = host

    def is_node_supported(self, submodules: Mapping[str, nn.Module], node: Node) -> bool:
        return node.op == "call_function" and node not in self.host


class _SegmentModule(nn.Module):
    """A segment where a graph calls a module."""

    def __init__(self, segment: Callable[[Sequence[Tensor]], list[Any]], *, single: bool) -> None:
        super().__init__()
        self.segment = segment
        self.single = single

    def forward(self, *args: Tensor) -> Any:
        """Run the program on the graph's values."""
        results = self.segment(args)
        return results[0] if self.single else tuple(results)


def _returns_tuple(module: GraphModule) -> bool:
    return isinstance(module.graph.output_node().args[0], (tuple, list))


def _placeholders(module: GraphModule) -> list[Node]:
    return [n for n in module.graph.nodes if n.op == "placeholder"]


def _source(node: Node) -> str:
    """The model's source line that a node comes from, as far as capture kept it."""
    lines = (node.meta.get("stack_trace") or "").splitlines()
    frames = [i for i, line in enumerate(lines) if line.strip().startswith("File ")]
    if not frames:
        return ""
    code = lines[frames[-1] + 1].strip() if frames[-1] + 1 < len(lines) else ""
    return f" ({lines[frames[-1]].strip()}: {code})"
