"""Placement: what cannot run on the engine runs on the host, in the open.

Nodes that lower are gathered into programs by torch's capability partitioner; the rest stays in the graph and runs in
PyTorch, fp32. What is the host's by design (:mod:`anew.frontend.hoisting`) is listed; every other such node is a
fallback: it is reported with the rule that keeps it off the engine, and ``strict`` makes it an error.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase

from anew.compiler.compile import depends_on, why_not
from anew.errors import AnewError
from anew.frontend.hoisting import hoist
from anew.frontend.partition import is_view
from anew.frontend.recorder import node_flops, source_line


class PlacementError(AnewError):
    """``strict`` was asked for and an operation cannot run on the engine."""


class PlacementWarning(UserWarning):
    """Part of a region runs on the host."""


@dataclass(frozen=True)
class HostOperation:
    """A graph node that runs on the host: where, what, and the rule that keeps it off the engine.

    Attributes:
        region: the graph's name. operation, shape: the ATen operation and the shape of its result.
        rule: what keeps it off the engine. source: the model's line.
        kind: ``boundary`` (the host's by design) or ``fallback`` (the engine could, but anew or the chip cannot).
        flops: those of a matmul or convolution, by PyTorch's formulas.
    """

    region: str
    operation: str
    shape: tuple[int, ...]
    rule: str
    source: str
    kind: str
    flops: int = 0


#: Metadata key: whether a value is linear in the cotangents.
_LINEAR = "anew_linear"
#: A frame of a traceback, as Dynamo keeps it: file and line.
_FRAME = re.compile(r'\s*File "([^"]+)", line (\d+)')
#: Makes a tensor without computing anything: not worth a row in a report.
_EMPTY = torch.ops.aten.empty_strided.default

MakeSegment = Callable[
    [GraphModule, str, Mapping[str, str], Mapping[int, bool]], Callable[[Sequence[Tensor]], list[Any]]
]


def host_operations(module: GraphModule, name: str, chip: Any, buffers: set[str]) -> dict[Node, HostOperation]:
    """The nodes of a graph that run on the host; ``buffers`` names the placeholders that are buffers of modules."""
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    refused = {node: rule for node in nodes if (rule := why_not(node, chip)) is not None}
    designed = hoist(module, refused, buffers)
    kinds = {node: ("boundary" if node in designed else "fallback") for node in nodes if node in refused | designed}
    return {node: _host_operation(node, name, (refused | designed)[node], kind) for node, kind in kinds.items()}


def _host_operation(node: Node, name: str, rule: str, kind: str) -> HostOperation:
    shape = tuple(getattr(node.meta.get("val"), "shape", ()))
    return HostOperation(name, str(node.target), shape, rule, _source(node), kind, node_flops(node))


def listed(found: Mapping[Node, HostOperation]) -> list[HostOperation]:
    """The operations to report: all fallbacks, and of the boundary's those that compute."""
    return [h for n, h in found.items() if h.kind == "fallback" or not (is_view(n) or n.target is _EMPTY)]


def report(operations: Sequence[HostOperation], *, strict: bool) -> None:
    """Warn of fallbacks; raises PlacementError naming the first one when ``strict``."""
    found = [operation for operation in operations if operation.kind == "fallback"]
    if not found:
        return
    first = found[0]
    place = f" ({first.source})" if first.source else ""
    sentence = f"{first.region}: '{first.operation}' {list(first.shape)} cannot run on the engine: {first.rule}{place}"
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
    module: GraphModule,
    name: str,
    host: set[Node],
    kinds: Mapping[str, str],
    first_saved: int | None,
    make: MakeSegment,
) -> Callable[[Sequence[Tensor]], Any]:
    """Return a callable of the graph's arguments that runs ``host`` in PyTorch and all else in programs.

    Results from ``first_saved`` on are only read by the backward graph.
    """
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
        saved = _saved(node, fused, first_saved, single=not _returns_tuple(sub))
        segment = make(sub, f"{name} {node.target}", inner, saved)
        fused.set_submodule(str(node.target), _SegmentModule(segment, single=not _returns_tuple(sub)))
    # what the forward saved is fp16; programs take it as it is
    read = [(n.meta["val"].dtype, any(user.op != "call_module" for user in n.users)) for n in _placeholders(fused)]

    def call(args: Sequence[Tensor]) -> Any:
        return fused(*[a.to(dtype) if by_host else a for a, (dtype, by_host) in zip(args, read, strict=True)])

    return call


def _saved(program: Node, fused: GraphModule, first_saved: int | None, *, single: bool) -> dict[int, bool]:
    """Of each result of a program, whether only the backward graph reads it."""
    if first_saved is None:
        return {}
    output = fused.graph.output_node()
    results: Any = output.args[0]
    kept = set(results[first_saved:]) - set(results[:first_saved])
    values: dict[Any, Node] = {0: program} if single else {getitem.args[1]: getitem for getitem in program.users}
    return {i: n in kept and set(n.users) == {output} for i, n in values.items()}


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
    """The model's line that a node comes from, as "file:line: code", as far as capture kept it."""
    lines = (node.meta.get("stack_trace") or "").splitlines()
    frames = [(i, found) for i, line in enumerate(lines) if (found := _FRAME.match(line))]
    if not frames:
        return ""
    at, frame = frames[-1]
    code = lines[at + 1].strip() if at + 1 < len(lines) else ""
    return f"{source_line(frame[1], frame[2])}: {code}"
