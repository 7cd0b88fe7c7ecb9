"""What the forward program saves for the backward one, and what that computes again, by what both cost on the chip.

A saved tensor is streamed to memory and from it. What is a function of each element of tensors that are there anyway
takes passes over its elements instead, counted on its lowered operations; and two more, in calls that measure, where
it is the operand of a product and its magnitude is bounded by nothing known. The search is greedy: it takes the change
that saves most, until none does. A chip whose rates nobody measured saves everything, and so does a graph whose
backward is in part the host's: what is computed again would go from program to program through the host.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from anew.chips import Chip
from anew.compiler.compile import lower_part, why_not
from anew.compiler.gains import Gain, rates_of
from anew.compiler.numbers import number_of
from anew.compiler.passes.magnitudes import Magnitudes
from anew.compiler.passes.scale_operands import PRODUCTS
from anew.frontend.partition import is_view, replay, size_of, takes_rows
from anew.frontend.scales import INTERVAL
from anew.projection import Rates, Work, from_memory
from anew.projection.count import work_of
from anew.projection.work import FP16_BYTES

aten = torch.ops.aten

#: A saved element is written by the forward program and read by the backward one.
STREAMED = 2 * FP16_BYTES
#: Passes that find the largest magnitude of an operand, in one call of so many.
MEASURING = 2 / INTERVAL

Stored = frozenset[Node]


def recompute(forward: GraphModule, backward: GraphModule, results: int, name: str, chip: Chip) -> list[Gain]:
    """Let the backward compute again, in place, what is cheaper so than saved; returns what that spares, if anything.

    Args:
        forward: a graph whose first ``results`` results are the model's, the others saved.
        backward: the graph that takes what is saved, before the cotangents.
        results: see ``forward``.
        name: names the two in messages.
        chip: whose prices hold.
    """
    rates = rates_of(chip.name)
    if rates is None or any(why_not(n, chip) for n in backward.graph.nodes if n.op == "call_function"):
        return []
    search = _Search(forward, backward, results, chip, rates)
    before, stored = search.start, search.best()
    if stored == before:
        return []
    replay(forward, backward, results, lambda node: node not in stored)
    spared = sum(map(size_of, before - stored)) - sum(map(size_of, stored - before))
    gain = search.cost(before) - search.cost(stored)
    return [Gain(name, "values computed again in the backward pass, not saved,", spared, 1e3 * gain)]


class _Search:
    """Looks for the tensors to store; ``start`` are those that the graphs were given."""

    def __init__(self, forward: GraphModule, backward: GraphModule, results: int, chip: Chip, rates: Rates) -> None:
        self.chip = chip
        self.rates = rates
        self.order = {node: i for i, node in enumerate(forward.graph.nodes)}
        outputs: Any = forward.graph.output_node().args[0]
        saved = outputs[results:]
        self.start: Stored = frozenset(saved)
        self.returned = set(outputs[:results])
        self.cheap: dict[Node, bool] = {}
        self.lowering: dict[Node, bool] = {}
        floats = {n for n in saved if _is_float32(n.meta.get("val"))}
        self.wanted = {n for n in floats - self.returned if self._is_cheap(n)}
        placeholders = (n for n in backward.graph.nodes if n.op == "placeholder")
        self.operands = {n for n, port in zip(saved, placeholders, strict=False) if self._meets_product(port)}
        self.costs: dict[Stored, float] = {}

    def best(self) -> Stored:
        """The tensors that are cheapest to store, as far as single changes lead there; the first of equals."""
        stored = self.start
        while True:
            found = min(self._changes(stored), key=self.cost, default=stored)
            if self.cost(found) >= self.cost(stored):
                return stored
            stored = found

    def cost(self, stored: Stored) -> float:
        """Seconds of a step for saving these and computing the rest of what is wanted; infinite if that cannot be."""
        if stored not in self.costs:
            self.costs[stored] = self._cost(stored)
        return self.costs[stored]

    def _cost(self, stored: Stored) -> float:
        again = self._in_order(self.wanted - stored)
        nodes, ends = self._walk(again, stored)
        if not ends <= stored:
            return math.inf
        function = lower_part(self._in_order(nodes), again, self.chip)
        magnitudes = Magnitudes(function, PRODUCTS)
        measured = sum(
            value.type.numel
            for node, value in zip(again, function.outputs, strict=True)
            if node in self.operands and magnitudes.of(value) is None
        )
        streamed = float(sum(size_of(n) for n in stored if n in self.wanted or n not in self.start))
        passes = work_of(function) + Work(elementwise=MEASURING * measured)
        return self.rates.time(from_memory(STREAMED * streamed) + passes)

    def _changes(self, stored: Stored) -> Iterator[Stored]:
        """One tensor more computed again, or saved after all; or others saved instead of what follows from them."""
        for node in self._in_order(self.wanted):
            yield stored ^ {node}
        for others in sorted(self._others(stored), key=lambda nodes: sorted(map(self.order.__getitem__, nodes))):
            fixed = (stored - self.wanted) | others
            yield (stored | others) - {n for n in self.wanted - others if self._follows(n, fixed, others)}

    def _follows(self, node: Node, fixed: Stored, others: Stored) -> bool:
        _, ends = self._walk([node], fixed)
        return ends <= fixed and not ends.isdisjoint(others)

    def _others(self, stored: Stored) -> set[Stored]:
        """What could be saved in the place of wanted tensors: one that they come from, or all that one starts from."""
        found: set[Stored] = set()
        for node in self.wanted:
            between, ends = self._walk([node], stored - self.wanted)
            found |= {frozenset([n]) for n in between | ends} | {ends - stored}
        return {others for others in found if others and all(self._may_come(n, stored) for n in others)}

    def _walk(self, targets: Sequence[Node], stored: Stored) -> tuple[set[Node], Stored]:
        """The nodes to compute for some from what is stored, and where that starts: there or at what has a price."""
        between: set[Node] = set()
        ends: set[Node] = set()
        ahead = list(targets)
        while ahead:
            node = ahead.pop()
            if not self._is_cheap(node) or (node in stored and node not in targets):
                ends.add(node)
            elif node not in between:
                between.add(node)
                ahead += node.all_input_nodes
        return between, frozenset(ends)

    def _in_order(self, nodes: Iterable[Node]) -> list[Node]:
        return sorted(nodes, key=self.order.__getitem__)

    def _may_come(self, node: Node, stored: Stored) -> bool:
        if node in stored or node in self.returned or is_view(node) or not _is_float32(node.meta.get("val")):
            return False
        return node.op == "call_function" and self._lowers(node)

    def _is_cheap(self, node: Node) -> bool:
        """Whether a node is a function of each element of what it reads, or moves it."""
        if node not in self.cheap:
            self.cheap[node] = node.op == "call_function" and self._is_function(node) and self._lowers(node)
        return self.cheap[node]

    def _is_function(self, node: Node) -> bool:
        if node.target is operator.getitem:
            return self._is_cheap(node.all_input_nodes[0])
        if number_of(node) is not None or is_view(node) or node.target is aten.clone.default:
            return True
        tags = getattr(node.target, "tags", ())
        return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags and _is_float(node)

    def _lowers(self, node: Node) -> bool:
        made = node.all_input_nodes[0] if node.target is operator.getitem else node
        if made not in self.lowering:
            self.lowering[made] = why_not(made, self.chip) is None
        return self.lowering[made]

    def _meets_product(self, node: Node) -> bool:
        """Whether a value of the backward is the operand of a product."""
        for user in node.users:
            if user.op == "output":
                continue
            if is_view(user) or takes_rows(user) or user.target in (aten.clone.default, aten.split.Tensor):
                if self._meets_product(user):
                    return True
            elif any(op.kind in PRODUCTS for op in lower_part([user], [user], self.chip).ops):
                return True
        return False


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return all(_is_float32(v) for v in (value if isinstance(value, (tuple, list)) else [value]))


def _is_float32(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32
