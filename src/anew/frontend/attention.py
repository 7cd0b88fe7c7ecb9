"""Attention in a form that the engine computes well, whichever way a model spells it.

``scaled_dot_product_attention`` is written out as matmul, softmax, matmul. Of attention that a model writes out itself
two things change: masks become additive and finite, and keys and values that are repeated for grouped queries are not:
the queries that share a key head become rows of one product.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from anew.frontend.dropout import dropout
from anew.frontend.match import called, shape_of, tensor_of

ATTENTION = (F.scaled_dot_product_attention, torch._C._nn.scaled_dot_product_attention)

_PRODUCTS = ("matmul", "bmm", "baddbmm", "addmm", "mm", "linear", "einsum", "scaled_dot_product_attention")


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
    blocks: int = 1,
) -> Tensor:
    """Scaled dot product attention written out; arguments as torch's, [batch, heads, tokens, head size].

    More than one block is for causal attention of as many queries as keys, without another mask or dropout, see
    :mod:`anew.frontend.attention_blocks`.

    Keys and values may have fewer heads. As in torch, a row whose mask is all False or all -inf mixes nothing: it is 0
    and has no gradient. A row that a finite mask lowers throughout, such as one of torch.finfo.min, attends to every
    key alike, as far as its scores differ by less than fp16's step at ``MASKED``.
    """
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if blocks > 1:
        return _in_blocks(query * factor, key, value, query.shape[-2] // blocks)
    scores = grouped_matmul(query * factor, key, transpose=True)
    if is_causal:
        scores = scores + torch.ops.anew.causal_mask(query.shape[-2], key.shape[-2])
    if attn_mask is not None:
        scores = scores + torch.ops.anew.additive_mask(attn_mask)
    mixed = grouped_matmul(dropout(torch.softmax(scores, -1), dropout_p), value)
    return mixed if attn_mask is None else mixed * torch.ops.anew.visible_rows(attn_mask.detach())


def _in_blocks(query: Tensor, key: Tensor, value: Tensor, rows: int) -> Tensor:
    """Causal attention of scaled queries, so many rows at a time: each block meets the keys up to its end only.

    Keys and values are put in order first, so that the backward pass finds the rows of all blocks in one tensor.
    """
    keys, values = (_Prefixes.apply(x.contiguous(), rows) for x in (key, value))
    mixed = []
    for q, k, v in zip(query.split(rows, -2), keys, values, strict=True):
        mixed.append(grouped_matmul(torch.softmax(_LastScores.apply(q, k), -1), v))
    return torch.cat(mixed, -2)


class _LastScores(torch.autograd.Function):
    """Causal scores of a block of queries and the keys up to its end; only the keys of its own rows meet the mask.

    Autograd by itself would take the gradient apart again; here each product of it is one.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor) -> Tensor:
        ctx.save_for_backward(query, key)
        rows = query.shape[-2]
        own = grouped_matmul(query, key[..., -rows:, :], transpose=True) + torch.ops.anew.causal_mask(rows, rows)
        if key.shape[-2] == rows:
            return own
        return torch.cat([grouped_matmul(query, key[..., :-rows, :], transpose=True), own], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        query, key = ctx.saved_tensors
        turned = _by_group(grad, key).transpose(-2, -1)
        return grouped_matmul(grad, key), torch.matmul(turned, _by_group(query, key))


class _Prefixes(torch.autograd.Function):
    """The first 1, 2, ... blocks of so many rows of [..., n, size].

    Autograd by itself would fill up each gradient with zeros. Here the one of k blocks is added to the first k blocks
    of the sum of those of more: (blocks - 1) / 2 additions an element.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: int) -> tuple[Tensor, ...]:
        return tuple(x[..., :end, :] for end in range(rows, x.shape[-2] + 1, rows))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        *others, total = grads
        done: list[Tensor] = []
        for grad in reversed(others):
            end = grad.shape[-2]
            done.insert(0, total[..., end:, :])
            total = total[..., :end, :] + grad
        return torch.cat([total, *done], -2), None


def grouped_matmul(x: Tensor, shared: Tensor, transpose: bool = False) -> Tensor:
    """``x @ shared`` where neighbouring heads of x [batch, heads, n, m] share a head of shared [batch, groups, m, k].

    With ``transpose`` the last two axes of ``shared`` are exchanged first. Returns [batch, heads, n, k].
    """
    heads, rows = x.shape[-3:-1]
    other = shared.transpose(-2, -1) if transpose else shared
    product = torch.matmul(_by_group(x, shared), other)
    return product.reshape(*product.shape[:-3], heads, rows, product.shape[-1])


def _by_group(x: Tensor, shared: Tensor) -> Tensor:
    """``x`` with the rows of the heads that share one of ``shared`` in one matrix."""
    *batch, heads, rows, size = x.shape
    groups = shared.shape[-3]
    return x.reshape(*batch, groups, heads // groups * rows, size)


def rewrite(node: Node) -> None:
    """Apply this module's rewrites to one node of a Dynamo graph."""
    if node.op == "call_function" and node.target in ATTENTION and len(shape_of(node)) > 2:
        _rewrite_whole(node)
    elif called(node, "softmax") and node.args:
        _finite_scores(node.args[0])
    elif called(node, "matmul") and len(node.args) == 2:
        _share_groups(node)


def _rewrite_whole(node: Node) -> None:
    node.target = attention
    for position, name in ((1, "key"), (2, "value")):
        operand: Any = node.kwargs[name] if name in node.kwargs else node.args[position]
        shared = _repeated(operand)
        if shared is not None:
            node.replace_input_with(operand, shared)
    _finite_scores(node.kwargs.get("attn_mask") or dict(enumerate(node.args)).get(3))


def _share_groups(node: Node) -> None:
    """Multiply with keys or values as they were before they were repeated for each query head."""
    x, other = node.args
    transpose = called(other, "transpose") and _are_last_two(other.args[1:])
    shared = _repeated(other.args[0] if transpose else other)  # type: ignore[union-attr]
    if shared is not None and len(shape_of(x)) == 4:
        node.op, node.target, node.args = "call_function", grouped_matmul, (x, shared, transpose)


def _are_last_two(dims: Any) -> bool:
    return sorted(d % 4 for d in dims) == [2, 3]


def _repeated(node: Any) -> Node | None:
    """The tensor [batch, groups, n, m] that a node repeats, head by head, to [batch, heads, n, m], if it does."""
    if len(shape_of(node)) != 4:
        return None
    args: Any = node.args
    if called(node, "repeat_interleave"):
        given = dict(zip(("repeats", "dim"), args[1:], strict=False)) | node.kwargs
        by_head = isinstance(given.get("repeats"), int) and given.get("dim") in (1, -3)
        return args[0] if by_head and len(shape_of(args[0])) == 4 else None
    if not called(node, "reshape") or not called(args[0], "expand"):
        return None
    unsqueezed: Any = args[0].args[0]
    if not called(unsqueezed, "getitem", "unsqueeze") or not _adds_axis_2(unsqueezed.args[1]):
        return None
    shared: Any = unsqueezed.args[0]
    if len(shape_of(shared)) != 4:
        return None
    batch, groups, *rest = shape_of(shared)
    repeats = shape_of(args[0])[2]
    expanded, joined = (batch, groups, repeats, *rest), (batch, groups * repeats, *rest)
    return shared if (shape_of(args[0]), shape_of(node)) == (expanded, joined) else None


def _adds_axis_2(index: Any) -> bool:
    """Whether an index, or unsqueeze's argument, does nothing to a tensor of four axes but add one before the third."""
    whole = slice(None)
    if isinstance(index, tuple):
        return index[:3] == (whole, whole, None) and all(i == whole for i in index[3:])
    return index in (2, -3)


def _finite_scores(node: Any) -> None:
    """Make the masks finite that are added to scores on the way to a softmax.

    Scores that a model replaces instead, by where or masked_fill, become finite where those are lowered.
    """
    while isinstance(node, Node) and len(node.users) == 1:
        if called(node, "add", "iadd") and len(node.args) == 2 and not node.kwargs:
            node = _finite_sum(node)
        elif called(node, "contiguous", "to", "float", "type"):
            node = node.args[0]
        else:
            return


def _finite_sum(node: Node) -> Any:
    """Make the mask in a sum finite; returns the scores, or None if it is no sum of scores and a mask."""
    args: Any = node.args
    for scores, mask in (args, args[::-1]):
        if _is_mask(mask) and isinstance(scores, Node) and not _is_mask(scores):
            node.replace_input_with(mask, _additive(node, mask))
            return scores
    return None


def _additive(before: Node, mask: Node) -> Node:
    """The finite additive form of a mask, made once however many layers use it."""
    for user in mask.users:
        if user.target is torch.ops.anew.additive_mask:
            return user
    with before.graph.inserting_before(before):
        new = before.graph.call_function(torch.ops.anew.additive_mask, (mask,))
    new.meta["stack_trace"] = before.meta.get("stack_trace")
    return new


def _is_mask(node: Any) -> bool:
    """Whether a float tensor is made without products and nothing is learned from it: a mask, or biases by position."""
    value = tensor_of(node)
    if value is None or not value.is_floating_point() or value.requires_grad:
        return False
    return not any(called(n, *_PRODUCTS) for n in _ancestry(node))


def _ancestry(node: Node) -> set[Node]:
    found, pending = set(), [node]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found
