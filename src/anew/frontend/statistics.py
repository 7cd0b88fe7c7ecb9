"""Batch norm, whose running statistics are the host's: fp32 buffers that no program writes.

A captured batch norm that trains becomes a standardisation over the batch; mean and deviation leave the region as two
more results, and after each call the buffers are updated from them in fp32. Counters of batches are counted here too.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from anew.frontend.functions import by_channel

_BATCH_NORM = inspect.signature(F.batch_norm)


@dataclass(frozen=True)
class Update:
    """An update of running statistics: positions among the arguments, momentum, eps, values in a batch by channel."""

    mean: int
    var: int
    momentum: float
    eps: float
    count: int

    def apply(self, args: Sequence[Any], batch_mean: Tensor, rstd: Tensor) -> None:
        """Move the buffers towards the batch's statistics, as torch does: the variance without bias."""
        running_mean, running_var = args[self.mean], args[self.var]
        var = (rstd.reshape(-1).pow(-2) - self.eps).clamp_min(0) * (self.count / (self.count - 1))
        running_mean.lerp_(batch_mean.reshape(-1), self.momentum)
        running_var.lerp_(var, self.momentum)


@dataclass
class Statistics:
    """What a region does to its buffers after each call."""

    updates: list[Update]
    counters: list[int]

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A callable that returns what the captured graph returned and updates the buffers."""
        if not self.updates and not self.counters:
            return call

        def run(*args: Any) -> Any:
            results = call(*args)
            kept = len(results) - 2 * len(self.updates)
            with torch.no_grad():
                for i, update in enumerate(self.updates):
                    update.apply(args, *results[kept + 2 * i : kept + 2 * i + 2])
                for counter in self.counters:
                    args[counter].add_(1)
            return results[:kept]

        return run


def take_statistics(module: GraphModule) -> Statistics:
    """Rewrite every batch norm of a Dynamo graph, in place, and return what is left to the host."""
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    found = Statistics([], [])
    extra: list[Node] = []
    for node in list(module.graph.nodes):
        if node.op == "call_method" and node.target == "add_" and _counts(node):
            found.counters.append(placeholders.index(node.args[0]))
            module.graph.erase_node(node)
        elif node.target is F.batch_norm and all(_is_statistic(n) for n in _given(node, "running_mean", "running_var")):
            _rewrite(node, placeholders, found, extra)
    if extra:
        output = module.graph.output_node()
        output.args = ((*output.args[0], *extra),)  # type: ignore[misc]
    return found


def _counts(node: Node) -> bool:
    """Whether a node adds one to an integer that enters the graph and that the graph does nothing else with."""
    source = node.args[0]
    return (
        not node.users
        and node.args[1:] == (1,)
        and isinstance(source, Node)
        and source.op == "placeholder"
        and all(user.target == "add_" for user in source.users)
        and not source.meta["example_value"].is_floating_point()
    )


def _given(node: Node, *names: str) -> list[Any]:
    """Arguments of a call of batch_norm by name."""
    given = _BATCH_NORM.bind(*node.args, **node.kwargs)
    given.apply_defaults()
    return [given.arguments[name] for name in names]


def _is_statistic(source: Node | None) -> bool:
    """Whether a running statistic enters the graph, or is none, and only batch norms read it."""
    return source is None or (source.op == "placeholder" and all(user.target is F.batch_norm for user in source.users))


def _rewrite(node: Node, placeholders: list[Node], found: Statistics, extra: list[Node]) -> None:
    x, mean, var, weight, bias, eps = _given(node, "input", "running_mean", "running_var", "weight", "bias", "eps")
    training, momentum = _given(node, "training", "momentum")
    graph = node.graph
    with graph.inserting_before(node):
        if not (training or mean is None):
            new = graph.call_function(_by_running, (x, mean, var, weight, bias, eps))
        else:
            both = graph.call_function(_by_batch, (x, weight, bias, eps))
            parts = [graph.call_function(_item, (both, i)) for i in range(3)]
            new = parts[0]
            if mean is not None:
                shape = x.meta["example_value"].shape
                count = math.prod(shape) // shape[1]
                positions = placeholders.index(mean), placeholders.index(var)
                found.updates.append(Update(*positions, momentum, eps, count))
                extra += parts[1:]
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _item(values: tuple[Tensor, ...], index: int) -> Tensor:
    return values[index]


def _by_batch(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The normed batch, its mean and its reciprocal standard deviation."""
    axes = [0, *range(2, x.dim())]
    normed, rstd, mean = torch.ops.anew.standardize(x, axes, eps)
    if weight is not None:
        normed = normed * by_channel(weight, x)
    if bias is not None:
        normed = normed + by_channel(bias, x)
    return normed, mean.detach(), rstd.detach()


def _by_running(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    rstd = torch.rsqrt(var + eps)
    y = (x - by_channel(mean, x)) * by_channel(rstd, x)
    y = y if weight is None else y * by_channel(weight, x)
    return y if bias is None else y + by_channel(bias, x)
