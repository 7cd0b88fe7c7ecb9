"""Into how many blocks of queries causal attention is split, by what that costs on the chip.

A block meets the keys up to its own end, not those that the mask would hide from all of it: of the L x L scores of a
head, n blocks leave ``(n + 1) / 2n``. For each block but one, the gradients of keys and values are added up. Weights
of what is masked are exactly 0, so that values are those of one block.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from anew.chips import Chip
from anew.chips.check import check_op, refused
from anew.compiler.gains import Gain, rates_of
from anew.compiler.lowering import Lowering
from anew.frontend.attention import attention
from anew.frontend.match import shape_of
from anew.frontend.recompute import STREAMED
from anew.projection import Work, from_memory
from anew.projection.work import FP16_BYTES

#: Numbers of blocks that may be chosen. Each block adds some thirty operations to a layer's programs.
BLOCKS = (1, 2, 4, 8)
#: Rows that a block has at least: no rate prices an operation by itself, and of small ones that is most of the time.
ROWS = 32


def split_queries(module: GraphModule, differentiated: bool, name: str, chip: Chip) -> list[Gain]:
    """Split causal attention in a rewritten Dynamo graph where that pays; returns what it spares.

    Only attention whose mask is known here and that drops nothing; a chip whose rates nobody measured splits nothing.

    Args:
        module: the graph, changed in place.
        differentiated: whether it has a backward pass.
        name: of the region, in messages.
        chip: whose prices and limits hold.
    """
    rates = rates_of(chip.name)
    if rates is None:
        return []
    found = []
    for node in module.graph.find_nodes(op="call_function", target=attention):
        sizes = _sizes(node)
        if sizes is None:
            continue
        costs = {n: rates.time(sizes.work(n, differentiated)) for n in BLOCKS if _fits(sizes.length, n, chip)}
        best = min(costs, key=costs.__getitem__)
        if best > 1:
            node.kwargs = {**node.kwargs, "blocks": best}
            masked = sizes.scores(1) - sizes.scores(best)
            change = f"{best} blocks of causal attention's queries, without scores that are masked anyway,"
            found.append(Gain(name, change, masked, 1e3 * (costs[1] - costs[best])))
    return found


@dataclass(frozen=True)
class Sizes:
    """The sizes of causal attention.

    Attributes:
        heads: of queries, of the whole batch. shared: of keys and values.
        length: of both. size, mixed: features of a key and of a value.
    """

    heads: int
    shared: int
    length: int
    size: int
    mixed: int

    def scores(self, blocks: int) -> int:
        """How many scores so many blocks compute."""
        return self.heads * self.length * self.length * (blocks + 1) // (2 * blocks)

    def work(self, blocks: int, differentiated: bool) -> Work:
        """The work as far as it depends on the number of blocks, in calls that do not measure.

        A score takes a multiply-accumulate for each feature of a key and of a value, and softmax. Backwards it is
        streamed there and back, has a sum subtracted and is multiplied, and takes part in two products for each one
        before. Besides, the last ``length / blocks`` scores of each row take a mask, which is streamed once for all
        heads and blocks, and the gradients of keys and values are added.
        """
        scores, rows = float(self.scores(blocks)), self.length / blocks
        flops = 2.0 * scores * (self.size + self.mixed)
        mask = Work(elementwise=self.heads * self.length * rows) + from_memory(FP16_BYTES * rows * rows)
        forward = Work(matmul=flops, attention=scores) + mask
        if not differentiated:
            return forward
        added = (blocks - 1) / 2 * self.shared * self.length * (self.size + self.mixed)
        return forward + Work(matmul=2.0 * flops, elementwise=2.0 * scores + added) + from_memory(STREAMED * scores)


def _sizes(node: Node) -> Sizes | None:
    """The sizes of attention that can be split: causal, with no other mask and no dropout, queries for all keys.

    Keys or values that all of a batch share stay whole: their gradients would have to be added over it.
    """
    given = inspect.signature(attention).bind(*node.args, **node.kwargs)
    given.apply_defaults()
    query, key, value = (shape_of(given.arguments[name]) for name in ("query", "key", "value"))
    how = [given.arguments[name] for name in ("attn_mask", "dropout_p", "is_causal")]
    alike = query[:-3] == key[:-3] and query[-2] == key[-2] and key[:-1] == value[:-1]
    if how != [None, 0, True] or not alike:
        return None
    return Sizes(math.prod(query[:-2]), math.prod(key[:-2]), query[-2], query[-1], value[-1])


def _fits(length: int, blocks: int, chip: Chip) -> bool:
    """Whether queries can be split so: evenly, not too finely, into rows of scores of which the chip takes softmax."""
    if blocks == 1:
        return True
    if length % blocks or length // blocks < ROWS:
        return False
    low = Lowering(chip)
    for end in range(length // blocks, length, length // blocks):
        low.op("softmax", x=low.builder.input(f"scores_{end}", (1, end)), axis=-1)
    return not any(refused(check_op(op, chip, low.builder.producer)) for op in low.builder.ops)
