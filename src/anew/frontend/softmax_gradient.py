"""The sums in softmax's gradient, over the features that were mixed instead of over all that was attended to.

From g, the gradient of ``y = softmax(scores)`` is ``y * (g - sum(g * y))``. Where y goes into one product, ``y @ v``,
and nowhere else, perhaps by way of dropout, g is ``grad @ v.T`` and so ``sum(g * y) = sum(grad * (y @ v))``: sums over
the features of a head, often a quarter as many as there are keys. It is what FlashAttention's backward pass does (Dao
et al., 2022, appendix B.2).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from anew.compiler.compile import depends_on
from anew.compiler.gains import rates_of
from anew.compiler.lowering import shape_of
from anew.frontend.partition import is_view
from anew.projection import Work, from_memory
from anew.projection.work import FP16_BYTES

aten = torch.ops.aten

_SOFTMAX_BACKWARD = aten._softmax_backward_data.default
_TURNS = (aten.transpose.int, aten.permute.default)
#: Where nobody measured a chip: passes over an element that cost what saving it for the backward pass does.
SAVED = 5


Step = Callable[["_Maker", Node], Node]


@dataclass
class _Mixed:
    """What softmax mixed and its cotangent, [..., features] in one layout, and how to come to the product's rows.

    Attributes:
        steps: what makes the product's rows of sums over both, [..., 1]; the last one first.
    """

    out: Node
    grad: Node
    steps: list[Step]


def shorten_sums(joint: GraphModule, chip: str) -> None:
    """Rewrite softmax's gradients in a joint graph, where that is cheaper on the chip."""
    graph, saving = joint.graph, _saving(chip)
    tangents = {n.name for n in graph.find_nodes(op="placeholder") if n.name.startswith("tangents")}
    backward = depends_on(graph, tangents)
    found: dict[Node, list[tuple[Node, _Mixed]]] = defaultdict(list)  # blocks of attention are mixed to one tensor
    for node in graph.find_nodes(op="call_function", target=_SOFTMAX_BACKWARD):
        mixed = _mixed(node)
        if mixed is not None:
            found[mixed.out].append((node, mixed))
    for out, gradients in found.items():
        if _pays([node for node, _ in gradients], out, backward, saving):
            for node, mixed in gradients:
                _rewrite(node, mixed)


def _saving(chip: str) -> float:
    """Passes over an element that cost what writing it to memory and reading it again does."""
    rates = rates_of(chip)
    return SAVED if rates is None else rates.time(from_memory(2 * FP16_BYTES)) / rates.time(Work(elementwise=1))


def _pays(gradients: list[Node], out: Node, backward: set[str], saving: float) -> bool:
    """A multiplication and a sum are spared of keys and done of features, which may have to be saved for it."""
    keys, features = sum(math.prod(shape_of(n)) for n in gradients), math.prod(shape_of(out))
    return 2 * (keys - features) > (0 if _is_saved(out, backward) else saving * features)


def _is_saved(node: Node, backward: set[str]) -> bool:
    """Whether the backward graph reads a node, or a view of it, anyway."""
    return any(u.name in backward or (is_view(u) and _is_saved(u, backward)) for u in node.users)


def _mixed(node: Node) -> _Mixed | None:
    """What the softmax of a gradient was multiplied with, if that is all that became of it."""
    grad, y, dim, _ = _args(node)
    product = _product(grad)
    if product is None or dim not in (-1, len(shape_of(node)) - 1):
        return None
    cotangent, turned = _args(product)
    if turned.target is not aten.transpose.int or _axes(turned) != [0, 2, 1]:
        return None
    values = _args(turned)[0]
    products = [u for u in values.users if u.target is aten.bmm.default and u.args[1] is values]
    products = [p for p in products if _comes_from(p.args[0], _source(y))]
    return _outermost(products[0], cotangent) if len(products) == 1 else None


def _product(node: Node) -> Node | None:
    """The product that a gradient is, but for factors such as dropout's, in the rows it has there."""
    if node.target is aten.bmm.default:
        return node
    if _keeps_rows(node):
        return _product(_args(node)[0])
    if node.target is aten.mul.Tensor:
        found = [p for p in map(_product, _equals(node)) if p is not None]
        return found[0] if len(found) == 1 else None
    return None


def _comes_from(node: Any, source: Node) -> bool:
    """Whether a node is ``source`` but for factors, in the rows it has there."""
    if _keeps_rows(node) and node is not source:
        return _comes_from(_args(node)[0], source)
    factors = _equals(node) if node.target is aten.mul.Tensor else []
    return node is source or any(_comes_from(n, source) for n in factors)


def _equals(node: Node) -> list[Node]:
    """The operands of a node that have its shape."""
    return [n for n in node.all_input_nodes if shape_of(n) == shape_of(node)]


def _source(node: Node) -> Node:
    while node.target in (aten.detach.default, aten.alias.default):
        (node,) = node.all_input_nodes
    return node


def _keeps_rows(node: Node) -> bool:
    """Whether a node has the elements of its first argument in their order, and rows as long."""
    if not (is_view(node) or node.target is aten.clone.default) or node.target in (*_TURNS, aten.t.default):
        return False
    before, after = shape_of(_args(node)[0]), shape_of(node)
    return math.prod(before) == math.prod(after) and before[-1:] == after[-1:]


def _outermost(out: Node, grad: Node) -> _Mixed:
    """Follow a product, and its cotangent back, through what happened to both alike, as far as that goes."""
    steps: list[Step] = []
    while True:
        while _keeps_rows(grad):
            grad = _args(grad)[0]
        step = next((step for n in _same_rows(out) for u in n.users if (step := _mirrored(n, u, grad))), None)
        if step is None:
            copies = [n for n in _same_rows(out) if not is_view(n)]
            return _Mixed(copies[-1] if copies else out, grad, steps)
        if grad.target is not aten.mul.Tensor:
            steps.append(_again(grad))
        out, grad = step


def _again(node: Node) -> Step:
    """Do to sums over the last axis what a node, a turn or a slice, does to what they are of."""
    before, after = (list(shape_of(n)[:-1]) for n in (_args(node)[0], node))

    def step(make: _Maker, total: Node) -> Node:
        target, how = (aten.permute.default, [_axes(node)]) if node.target in _TURNS else (node.target, node.args[1:])
        return make(target, make.view(total, [*before, 1]), *how, shape=[*after, 1])

    return step


def _same_rows(node: Node) -> Iterator[Node]:
    yield node
    for user in node.users:
        if _keeps_rows(user):
            yield from _same_rows(user)


def _mirrored(node: Node, user: Node, grad: Node) -> tuple[Node, Node] | None:
    """``user`` and its cotangent, if ``grad`` comes from that as the cotangent of ``node``."""
    if grad.target in _TURNS and user.target in _TURNS:
        forth, back = _axes(user), _axes(grad)
        if (
            shape_of(node) == shape_of(grad)
            and forth[-1] == len(forth) - 1
            and [forth[b] for b in back] == sorted(back)
        ):
            return user, _args(grad)[0]
    if grad.target is aten.slice.Tensor and user.target is aten.cat.default and _is_part(node, user, grad):
        return user, _args(grad)[0]
    if grad.target is user.target is aten.mul.Tensor and shape_of(node) == shape_of(user) == shape_of(grad):
        factors = [n for n in grad.all_input_nodes if n is not node and n in user.all_input_nodes]
        others = [n for n in grad.all_input_nodes if n not in factors]
        if len(factors) == len(others) == 1 and shape_of(others[0]) == shape_of(grad):
            return user, others[0]
    return None


def _is_part(node: Node, joined: Node, part: Node) -> bool:
    """Whether ``part`` takes from a tensor of the shape of ``joined`` the rows that ``node`` has there."""
    (nodes, *axis), (whole, *given) = _args(joined), _args(part)
    dim = (axis[0] if axis else 0) % len(shape_of(node))
    begin = sum(shape_of(n)[dim] for n in nodes[: nodes.index(node)])
    rows = (shape_of(joined), dim, begin, begin + shape_of(node)[dim])
    return dim < len(shape_of(node)) - 1 and rows == (shape_of(whole), given[0] % len(shape_of(node)), *given[1:])


def _axes(node: Node) -> list[int]:
    """The order in which a node takes the axes of its argument."""
    rank = len(shape_of(node))
    axes, (_, *given) = list(range(rank)), _args(node)
    if node.target is aten.permute.default:
        return [a % rank for a in given[0]]
    first, second = (a % rank for a in given)
    axes[first], axes[second] = second, first
    return axes


def _rewrite(node: Node, mixed: _Mixed) -> None:
    grad, y, *_ = _args(node)
    make, shape = _Maker(node), [*shape_of(mixed.out)]
    total = make(aten.mul.Tensor, make.view(mixed.grad, shape), mixed.out, shape=shape)
    total = make(aten.sum.dim_IntList, total, [-1], True, shape=[*shape[:-1], 1])
    for step in reversed(mixed.steps):
        total = step(make, total)
    total = make.view(total, [*shape_of(y)[:-1], 1])
    node.replace_all_uses_with(make(torch.ops.anew.softmax_backward.default, grad, y, total, shape=[*shape_of(node)]))
    node.graph.erase_node(node)


class _Maker:
    """Makes nodes before another one, with its metadata but for their shapes."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def __call__(self, target: Any, *args: Any, shape: list[int]) -> Node:
        with self.node.graph.inserting_before(self.node):
            new = self.node.graph.call_function(target, args)
        new.meta = {**self.node.meta, "val": self.node.meta["val"].new_empty(shape)}
        return new

    def view(self, x: Node, shape: list[int]) -> Node:
        return x if list(shape_of(x)) == shape else self(aten.view.default, x, shape, shape=shape)


def _args(node: Node) -> tuple[Any, ...]:
    return node.args
