"""Split a joint graph into forward and backward so that only what must be is saved between them.

AOTAutograd's default partition saves whatever the backward reads, views and constants included. A view of a saved
tensor would be a second output of the program, and a view of a weight a copy of it; so views are replayed in the
backward, and the tensors they look at are saved once. So are copies of transposed matrices, such as attention's keys:
products read either.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from functorch.compile import default_partition
from torch.fx import GraphModule, Node
from torch.utils.checkpoint import CheckpointPolicy

aten = torch.ops.aten

_VIEWS = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.t.default,
    aten.transpose.int,
    aten.permute.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
    aten.expand.default,
    aten.detach.default,
    aten.alias.default,
}


def partition(joint: GraphModule, joint_inputs: Any, *, num_fwd_outputs: int, **kwargs: Any) -> tuple[Any, Any]:
    """A ``partition_fn`` of AOTAutograd: default partition, then views of saved tensors replayed in the backward.

    What the model checkpoints is recomputed in the backward, except what is drawn at random: that is saved.
    """
    _save_draws(joint)
    forward, backward = default_partition(joint, joint_inputs, num_fwd_outputs=num_fwd_outputs, **kwargs)
    results = list(forward.graph.output_node().args[0])
    results, saved = results[:num_fwd_outputs], results[num_fwd_outputs:]
    placeholders = [n for n in backward.graph.nodes if n.op == "placeholder"]
    replay = _Replay(backward, dict(zip(saved, placeholders, strict=False)), first_cotangent=placeholders[len(saved)])
    for node in saved:
        if _is_replayed(node):
            replay.replace(node)
    kept = [n for n in saved if not _is_replayed(n)]
    extra = [n for n in replay.added if n not in kept]
    _set_output(forward, [*results, *kept, *extra])
    for module in (forward, backward):
        module.graph.eliminate_dead_code()
        module.graph.lint()
        module.recompile()
    return forward, backward


def _save_draws(joint: GraphModule) -> None:
    for node in joint.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            for saved in (node, *(user for user in node.users if user.target is operator.getitem)):
                if "recompute" in saved.meta:
                    saved.meta["recompute"] = CheckpointPolicy.MUST_SAVE


def is_view(node: Any) -> bool:
    """Whether a node is a view of its first argument."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in _VIEWS


def _is_replayed(node: Node) -> bool:
    return is_view(node) or _is_turned_copy(node)


def _is_turned_copy(node: Node) -> bool:
    """Whether a node copies matrices transposed that are there in rows: the last two axes of what is no view."""
    if node.target is not aten.clone.default:
        return False
    (source,) = node.all_input_nodes
    while source.target is aten.expand.default and _shape(source) == _shape(source.all_input_nodes[0]):
        (source,) = source.all_input_nodes
    if source.target is not aten.transpose.int or is_view(source.args[0]):
        return False
    rank = len(_shape(source))
    return sorted(int(axis) % rank for axis in cast(tuple[int, int], source.args[1:])) == [rank - 2, rank - 1]


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _set_output(module: GraphModule, results: list[Any]) -> None:
    output = module.graph.output_node()
    output.args = (tuple(results),)


class _Replay:
    """Recomputes saved views in the backward graph from the tensors they look at.

    ``placeholders`` gives the backward's placeholder of each saved node of the forward.
    """

    def __init__(self, backward: GraphModule, placeholders: dict[Node, Node], first_cotangent: Node) -> None:
        self.graph = backward.graph
        self.placeholders = placeholders
        self.first_cotangent = first_cotangent
        self.first_operation = next(n for n in self.graph.nodes if n.op != "placeholder")
        self.added: list[Node] = []

    def replace(self, view: Node) -> None:
        """Put the replayed view in the place of the placeholder that stood for it."""
        placeholder = self.placeholders.pop(view)
        placeholder.replace_all_uses_with(self._value(view))
        self.graph.erase_node(placeholder)

    def _value(self, node: Node) -> Node:
        if not _is_replayed(node):
            return self._saved(node)
        base = self._value(node.args[0])  # type: ignore[arg-type]
        with self.graph.inserting_before(self.first_operation):
            new = self.graph.call_function(cast(Callable[..., Any], node.target), (base, *node.args[1:]), node.kwargs)
        new.meta = dict(node.meta)
        return new

    def _saved(self, node: Node) -> Node:
        if node not in self.placeholders:
            with self.graph.inserting_before(self.first_cotangent):
                new = self.graph.placeholder(node.name)
            new.target = new.name  # the graph may have renamed it, and generated Python takes arguments by target
            new.meta = dict(node.meta)
            self.placeholders[node] = new
            self.added.append(node)
        return self.placeholders[node]
