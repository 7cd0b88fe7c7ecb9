"""Split a joint graph into forward and backward so that only what must be is saved between them.

AOTAutograd's default partition saves whatever the backward reads, views and constants included. A view of a saved
tensor would be a second output of the program, and a view of a weight a copy of it; so views are replayed in the
backward, and the tensors they look at are saved once. So are copies of transposed matrices, such as attention's keys:
products read either. Rows that are taken from one tensor are taken from it again, if the whole is not more than they.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

import torch
from functorch.compile import default_partition
from torch.fx import GraphModule, Node
from torch.utils.checkpoint import CheckpointPolicy

from anew.compiler.lowering import shape_of
from anew.compiler.transposes import turns

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
    replay(forward, backward, num_fwd_outputs, _is_replayed)
    outputs: Any = forward.graph.output_node().args[0]
    rows = _rows_of_saved(outputs[num_fwd_outputs:])
    replay(forward, backward, num_fwd_outputs, lambda node: node in rows or _is_replayed(node))
    return forward, backward


def replay(forward: GraphModule, backward: GraphModule, results: int, again: Callable[[Node], bool]) -> None:
    """Compute in the backward, in place, what the forward saves and ``again`` is true of, from what it is not true of.

    The forward, whose first ``results`` results are the model's, saves all that this takes.
    """
    outputs: list[Any] = list(forward.graph.output_node().args[0])  # type: ignore[arg-type]
    saved = outputs[results:]
    placeholders = [n for n in backward.graph.nodes if n.op == "placeholder"]
    known = dict(zip(saved, placeholders, strict=False))
    computing = _Replay(backward, known, placeholders[len(saved)], again)
    for node in saved:
        if again(node):
            computing.replace(node)
    kept = [n for n in saved if not again(n)]
    extra = [n for n in computing.added if n not in kept]
    forward.graph.output_node().args = ((*outputs[:results], *kept, *extra),)
    for module in (forward, backward):
        module.graph.eliminate_dead_code()
        module.graph.lint()
        module.recompile()


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
    while source.target is aten.expand.default and shape_of(source) == shape_of(source.all_input_nodes[0]):
        (source,) = source.all_input_nodes
    return source.target is aten.transpose.int and turns(source) and not is_view(source.args[0])


def _rows_of_saved(saved: list[Node]) -> set[Node]:
    """What takes rows, that are saved, of one tensor which is as well, or has no more elements than they together."""
    paths = {node: path for node in saved if (path := _path_to_rows(node))}
    taken: dict[Node, int] = defaultdict(int)
    for node, path in paths.items():
        taken[_source(path)] += size_of(node)
    whole = {source for source, size in taken.items() if source in saved or size_of(source) <= size}
    return {n for path in paths.values() if _source(path) in whole for n in path}


def _path_to_rows(node: Node) -> list[Node]:
    """A node and what it comes from by views and copies, up to what takes rows of a tensor; none if nothing does."""
    path = [node]
    while not takes_rows(path[-1]):
        if not is_view(path[-1]) and path[-1].target is not aten.clone.default:
            return []
        path += path[-1].all_input_nodes
    return path + (path[-1].all_input_nodes if path[-1].target is operator.getitem else [])


def _source(path: list[Node]) -> Node:
    (source,) = path[-1].all_input_nodes
    while is_view(source):
        (source,) = source.all_input_nodes
    return source


def takes_rows(node: Node) -> bool:
    """Whether a node takes a range of an axis that is not the last, by slice or split."""
    taking, target, position = node, aten.slice.Tensor, 1
    if node.target is operator.getitem:
        taking, target, position = node.all_input_nodes[0], aten.split.Tensor, 2
    if taking.target is not target:
        return False
    axis, rank = cast(int, taking.args[position] if len(taking.args) > position else 0), len(shape_of(node))
    return axis % rank < rank - 1


def size_of(node: Node) -> int:
    """How many elements a node's result has."""
    return int(node.meta["val"].numel())


class _Replay:
    """Computes saved values in the backward graph, those that ``again`` is true of, from those that stay saved.

    ``placeholders`` gives the backward's placeholder of each saved node of the forward.
    """

    def __init__(
        self,
        backward: GraphModule,
        placeholders: dict[Node, Node],
        first_cotangent: Node,
        again: Callable[[Node], bool],
    ) -> None:
        self.graph = backward.graph
        self.placeholders = placeholders
        self.first_cotangent = first_cotangent
        self.first_operation = next(n for n in self.graph.nodes if n.op != "placeholder")
        self.again = again
        self.computed: dict[Node, Node] = {}
        self.added: list[Node] = []

    def replace(self, node: Node) -> None:
        """Put the value computed again in the place of the placeholder that stood for it."""
        placeholder = self.placeholders.pop(node)
        placeholder.replace_all_uses_with(self._value(node))
        self.graph.erase_node(placeholder)

    def _value(self, node: Node) -> Node:
        if not self.again(node):
            return self._saved(node)
        if node not in self.computed:
            for source in node.all_input_nodes:
                self._value(source)
            with self.graph.inserting_before(self.first_operation):
                self.computed[node] = self.graph.node_copy(node, self._value)
        return self.computed[node]

    def _saved(self, node: Node) -> Node:
        if node not in self.placeholders:
            with self.graph.inserting_before(self.first_cotangent):
                new = self.graph.placeholder(node.name)
            new.target = new.name  # the graph may have renamed it, and generated Python takes arguments by target
            new.meta = dict(node.meta)
            self.placeholders[node] = new
            self.added.append(node)
        return self.placeholders[node]
