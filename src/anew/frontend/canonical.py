"""Rewrite a captured graph before autograd sees it, so that its derivative is one the engine computes well.

* attention is written out as matmul, softmax, matmul, with additive finite masks; grouped queries share their key
head's
  rows, so nothing is repeated
* ``x * rsqrt(mean(x^2) + eps)`` becomes one operation whose forward and backward stay within fp16 at any scale of x
* norms, pooling and some activations are written out in a form that stays within fp16
* casts to the type a tensor already has disappear, and so do empty tensors put before others, as a new cache does
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from anew.frontend.functions import METHODS, REPLACEMENTS


def canonicalize(module: GraphModule) -> None:
    """Apply the rewrites to a Dynamo graph, in place."""
    for node in list(module.graph.nodes):
        if _drops_cast(node):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif _called(node, "cat"):
            _drop_empty(node)
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in _ATTENTION:
            _retarget(node, attention)
        elif node.op == "call_function" and node.target in REPLACEMENTS:
            _retarget(node, REPLACEMENTS[node.target])
        elif node.op == "call_method" and node.target in METHODS:
            node.op = "call_function"
            _retarget(node, METHODS[node.target])
        else:
            _match_rms_norm(node)
    module.graph.eliminate_dead_code()
    module.recompile()


_ATTENTION = (F.scaled_dot_product_attention, torch._C._nn.scaled_dot_product_attention)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot product attention written out; arguments as torch's, [batch, heads, tokens, head size]."""
    *batch, heads, length, size = query.shape
    shared, keys = key.shape[-3], key.shape[-2]
    grouped = query.reshape(*batch, shared, heads // shared * length, size)
    factor = 1 / math.sqrt(size) if scale is None else scale
    scores = torch.matmul(grouped * factor, key.transpose(-2, -1)).view(*batch, heads, length, keys)
    if is_causal:
        scores = scores + torch.ops.anew.causal_mask(length, keys)
    if attn_mask is not None:
        additive = torch.ops.anew.additive_mask(attn_mask) if attn_mask.dtype == torch.bool else attn_mask
        scores = scores + additive
    weights = F.dropout(torch.softmax(scores, -1), dropout_p, training=dropout_p > 0)
    mixed = torch.matmul(weights.view(*batch, shared, heads // shared * length, keys), value)
    return mixed.view(*batch, heads, length, value.shape[-1])


def _normalized(x: Tensor, eps: float) -> Tensor:
    normed: Tensor = torch.ops.anew.rms_norm(x, eps)[0]
    return normed


def _retarget(node: Node, function: Callable[..., Tensor]) -> None:
    node.target = function


def _called(node: Any, *names: str) -> bool:
    """Whether a node calls a method or a function of one of these names."""
    if not isinstance(node, Node) or node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in names


def _drops_cast(node: Node) -> bool:
    if not _called(node, "to", "float") or not node.args or not isinstance(node.args[0], Node):
        return False
    if True in (*node.args[1:], *node.kwargs.values()):  # copy=True: a tensor of its own
        return False
    before, after = node.args[0].meta.get("example_value"), node.meta.get("example_value")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
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
    if not _called(node, "mul") or len(node.args) != 2:
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
    if not _called(node, "rsqrt") or len(node.args) != 1 or not _called(node.args[0], "add"):
        return None
    added = node.args[0]
    if len(added.args) != 2 or added.kwargs:
        return None
    mean, eps = added.args
    if not isinstance(eps, float) or not _called(mean, "mean") or not mean.args or not _keeps_last(mean):
        return None
    return _squared(mean.args[0], eps)


def _keeps_last(mean: Node) -> bool:
    dim = mean.args[1] if len(mean.args) > 1 else mean.kwargs.get("dim")
    keep = mean.args[2] if len(mean.args) > 2 else mean.kwargs.get("keepdim", False)
    return dim in (-1, (-1,), [-1]) and keep is True and mean.kwargs.get("dtype") is None


def _squared(node: Any, eps: float) -> tuple[Node, float] | None:
    squares = (_called(node, "square") and len(node.args) == 1) or (
        len(getattr(node, "args", ())) == 2
        and ((_called(node, "pow") and node.args[1] == 2) or (_called(node, "mul") and node.args[0] is node.args[1]))
    )
    return (node.args[0], eps) if squares else None
