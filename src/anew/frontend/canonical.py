"""Rewrite a captured graph before autograd sees it, so that its derivative is one the engine computes well.

* attention is written out, with additive finite masks and nothing repeated (:mod:`anew.frontend.attention`)
* dropout multiplies with a mask that the host draws (:mod:`anew.frontend.dropout`)
* the number that scales an adapter goes where it has the fewest elements to scale (:mod:`anew.frontend.factors`)
* signs of halves, in rotary embeddings, go to the sines (:mod:`anew.frontend.signs`)
* ``x * rsqrt(mean(x^2) + eps)`` becomes one operation whose forward and backward stay within fp16 at any scale of x
* norms, pooling and some activations are written out in a form that stays within fp16
* casts to the type a tensor already has disappear, and so do empty tensors put before others, as a new cache does
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from anew.frontend import attention, dropout, factors, signs
from anew.frontend.functions import METHODS, REPLACEMENTS
from anew.frontend.match import called, tensor_of


def canonicalize(module: GraphModule) -> None:
    """Apply the rewrites to a Dynamo graph, in place."""
    for node in list(module.graph.nodes):
        if _drops_cast(node):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif called(node, "cat"):
            _drop_empty(node)
    for node in list(module.graph.nodes):
        attention.rewrite(node)
        dropout.rewrite(node)
        factors.rewrite(node)
        signs.rewrite(node)
        if node.op == "call_function" and node.target in REPLACEMENTS:
            node.target = REPLACEMENTS[node.target]
        elif node.op == "call_method" and node.target in METHODS:
            node.op, node.target = "call_function", METHODS[node.target]
        else:
            _match_rms_norm(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _normalized(x: Tensor, eps: float) -> Tensor:
    normed: Tensor = torch.ops.anew.rms_norm(x, eps)[0]
    return normed


def _drops_cast(node: Node) -> bool:
    if not called(node, "to", "float") or not node.args or not isinstance(node.args[0], Node):
        return False
    if True in (*node.args[1:], *node.kwargs.values()):  # copy=True: a tensor of its own
        return False
    before, after = tensor_of(node.args[0]), tensor_of(node)
    if before is None or after is None:
        return False
    return before.dtype == after.dtype and before.device == after.device


def _drop_empty(cat: Node) -> None:
    """Leave out tensors of shape [0], which torch lets one concatenate with any; one that is left stands alone."""
    tensors = cat.args[0]
    if not isinstance(tensors, (tuple, list)):
        return
    left = [x for x in tensors if not (isinstance(x, Node) and _shape(x) == (0,))]
    if len(left) == 1 and len(tensors) > 1 and isinstance(left[0], Node):
        cat.replace_all_uses_with(left[0])
        cat.graph.erase_node(cat)
    elif left:
        cat.args = (left, *cat.args[1:])


def _shape(node: Node) -> tuple[int, ...] | None:
    value = node.meta.get("example_value")
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _match_rms_norm(node: Node) -> None:
    """Replace ``x * rsqrt(mean(square(x), -1, keepdim) + eps)``."""
    if not called(node, "mul") or len(node.args) != 2:
        return
    for x, rstd in (node.args, node.args[::-1]):
        found = _rstd_of(rstd)
        if found is not None and found[0] is x and isinstance(x, Node):
            with node.graph.inserting_before(node):
                new = node.graph.call_function(_normalized, found)
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            node.graph.erase_node(node)
            return


def _rstd_of(node: Any) -> tuple[Node, float] | None:
    """The x and eps of ``rsqrt(mean(square(x), -1, keepdim) + eps)``."""
    if not called(node, "rsqrt") or len(node.args) != 1 or not called(node.args[0], "add"):
        return None
    added = node.args[0]
    if len(added.args) != 2 or added.kwargs:
        return None
    mean, eps = added.args
    if not isinstance(eps, float) or not called(mean, "mean") or not mean.args or not _keeps_last(mean):
        return None
    return _squared(mean.args[0], eps)


def _keeps_last(mean: Node) -> bool:
    dim = mean.args[1] if len(mean.args) > 1 else mean.kwargs.get("dim")
    keep = mean.args[2] if len(mean.args) > 2 else mean.kwargs.get("keepdim", False)
    return dim in (-1, (-1,), [-1]) and keep is True and mean.kwargs.get("dtype") is None


def _squared(node: Any, eps: float) -> tuple[Node, float] | None:
    squares = (called(node, "square") and len(node.args) == 1) or (
        len(getattr(node, "args", ())) == 2
        and ((called(node, "pow") and node.args[1] == 2) or (called(node, "mul") and node.args[0] is node.args[1]))
    )
    return (node.args[0], eps) if squares else None
