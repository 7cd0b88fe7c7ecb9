"""Which nodes of a graph are the host's by design: what no engine holds, and what is known before any program runs.

The engine computes in fp16 and has no integers, no random numbers and no gathers. Index arithmetic, mask building,
draws and embeddings are therefore the host's, in PyTorch, in fp32, before the programs that take their results as
ports. They are listed (``kind`` "boundary") and are no fallback: there is no warning, and ``strict`` takes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from anew.compiler.lowering import TABLE
from anew.compiler.numbers import number_of
from anew.frontend.partition import is_view

aten, anew = torch.ops.aten, torch.ops.anew

RANDOM = "random numbers are drawn on the host, from torch's generator"
INTEGERS = "integers and booleans are the host's; the engine computes in fp16 only"
GATHER = "the host gathers and scatters by index"
GIVEN = "depends on no activation and no parameter; the host computes it in fp32"
SUM = "added to what the host scattered, in fp32"
MASK = "the host makes a mask finite before it enters a program"

_MASKS = {anew.additive_mask.default, anew.visible_rows.default}

#: Operations that take only shape and layout from their first argument.
_SHAPED_LIKE = {
    aten.bernoulli.p,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.uniform.default,
    aten.normal_functional.default,
    aten.exponential.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
}

#: Operations on floats whose integer argument is an index.
_GATHERS = {
    aten.embedding,
    aten.embedding_dense_backward,
    aten.index,
    aten._unsafe_index,
    aten.index_put,
    aten._unsafe_index_put,
    aten.index_select,
    aten.index_add,
    aten.gather,
    aten.scatter,
    aten.scatter_add,
}

#: Operations whose integers must stay integers.
_TAKE_INTEGERS = {*_GATHERS, aten._to_copy}

#: Those that give the gradient of what was gathered.
_SCATTERS = {aten.embedding_dense_backward, aten.index_put, aten.index_add, aten.scatter_add}


def detach_host_work(module: GraphModule) -> None:
    """Take apart, in place, what would tie host work to programs.

    Draws and constants shaped like a tensor no longer depend on it, so that they need no program to run first. Integers
    that meet floats in an operation of the engine are made floats by an operation of the host.
    """
    for node in list(module.graph.nodes):
        if node.target in _SHAPED_LIKE - TABLE.keys():
            _free(node)
        elif node.target in TABLE and _is_float(node) and _packet(node) not in _TAKE_INTEGERS:
            for integers in (n for n in node.all_input_nodes if _is_integer(n) and number_of(n) is None):
                _insert(node, integers, aten._to_copy.default, (integers,), {"dtype": torch.float32})
    module.graph.eliminate_dead_code()
    module.recompile()


def _free(node: Node) -> None:
    like = node.all_input_nodes[0]
    value = torch.empty_like(like.meta["val"])
    _insert(node, like, aten.empty_strided.default, (value.shape, value.stride()), {"dtype": value.dtype})


def _insert(before: Node, old: Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Put the result of a new operation in the place of an argument."""
    with before.graph.inserting_before(before):
        new = before.graph.call_function(target, args, kwargs)
    new.meta["val"] = torch.empty_like(old.meta["val"], dtype=kwargs["dtype"])
    new.meta["stack_trace"] = before.meta.get("stack_trace")
    before.replace_input_with(old, new)


def hoist(module: GraphModule, refused: Mapping[Node, str], buffers: set[str]) -> dict[Node, str]:
    """The nodes that are the host's by design, each with the reason.

    Args:
        module: a graph of ATen operations with ``val`` metadata.
        refused: the nodes that do not lower, with the rule.
        buffers: names of the placeholders that are buffers of modules.
    """
    found: dict[Node, str] = {}
    given: set[Node] = set()  # values made of integers, masks and buffers alone
    for node in module.graph.nodes:
        if node.op == "get_attr" or (node.op == "placeholder" and (node.name in buffers or not _is_float(node))):
            given.add(node)
        if node.op != "call_function":
            continue
        if all(n in given for n in node.all_input_nodes):
            given.add(node)
        reason = _reason(node, node in given, node in refused)
        if reason is not None:
            found[node] = reason
        if reason == MASK:
            found.update(dict.fromkeys(_movement(node.all_input_nodes[0], found), reason))
    constants = [n for n in given - found.keys() if n.op == "call_function" and number_of(n) is None]
    return found | {n: GIVEN for n in constants if any(user in found for user in n.users)}


def _reason(node: Node, given: bool, refused: bool) -> str | None:
    """Why a node is the host's by design; None if it is the engine's, or a fallback."""
    if node.target in _MASKS:
        mask = node.all_input_nodes[0]
        return MASK if _is_float(mask) and _enters(mask, given) else None
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return RANDOM
    if _packet(node) in _GATHERS and any(_is_integer(n) for n in node.all_input_nodes):
        return GATHER
    if node.target is aten.add.Tensor and any(_packet(n) in _SCATTERS for n in node.all_input_nodes):
        return SUM
    if refused and not _is_float(node) and not any(_is_float(n) for n in node.all_input_nodes):
        return INTEGERS
    return GIVEN if given and (refused or node.all_input_nodes) else None


def _packet(node: Node) -> Any:
    """The operation that a node calls, whichever overload."""
    return getattr(node.target, "overloadpacket", None)


def _enters(mask: Node, given: bool) -> bool:
    """Whether a mask is known before any program runs."""
    return given or mask.op == "placeholder" or (_moves(mask) and _enters(mask.all_input_nodes[0], given))


def _movement(node: Node, found: Mapping[Node, str]) -> list[Node]:
    """The views and slices by which a mask comes from where it enters."""
    if node.op != "call_function" or node in found:
        return []
    return [node, *_movement(node.all_input_nodes[0], found)]


def _moves(node: Node) -> bool:
    return is_view(node) or node.target is aten.slice.Tensor


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_integer(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool
