"""Matrix products with more around them in one operation: a linear layer, and attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anew.mil.ops.registry import MilError, Param, broadcast, constant, define, shape_error, tensor
from anew.mil.types import TensorType


def _linear_type(x: TensorType, weight: TensorType, bias: TensorType | None) -> TensorType:
    if x.rank < 1 or weight.rank != 2 or x.shape[-1] != weight.shape[1]:
        raise shape_error("linear", "weight is [out, in] and x ends with in", x=x.shape, weight=weight.shape)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise shape_error("linear", "bias has one number an output", weight=weight.shape, bias=bias.shape)
    if x.dtype != weight.dtype or (bias is not None and bias.dtype != x.dtype):
        raise MilError(f"linear: x is {x.dtype} but weight {weight.dtype}, or bias; cast one of them")
    return TensorType(x.dtype, (*x.shape[:-1], weight.shape[0]))


def _linear_flops(result: TensorType, weight: TensorType, bias: TensorType | None, **_: Any) -> int:
    return 2 * result.numel * weight.shape[1] + (result.numel if bias is not None else 0)


define(
    "linear",
    (tensor("x"), constant("weight"), constant("bias", required=False)),
    _linear_type,
    F.linear,
    "mac",
    _linear_flops,
)


def _attention_type(query: TensorType, key: TensorType, value: TensorType, attn_mask: TensorType | None) -> TensorType:
    op = "scaled_dot_product_attention"
    q, k, v = query.shape, key.shape, value.shape
    if len(q) < 3 or q[:-2] != k[:-2] or q[:-2] != v[:-2]:
        raise shape_error(op, "query, key and value agree in all but the last two axes", query=q, key=k, value=v)
    if q[-1] != k[-1] or k[-2] != v[-2]:
        raise shape_error(op, "query and key differ in width, or key and value in length", query=q, key=k, value=v)
    if not query.dtype == key.dtype == value.dtype:
        raise MilError(f"{op}: query, key and value are {query.dtype}, {key.dtype} and {value.dtype}; cast them")
    if attn_mask is not None:
        if attn_mask.dtype not in ("bool", query.dtype):
            raise MilError(f"{op}: attn_mask is {attn_mask.dtype}; it takes bool or {query.dtype}")
        scores = (*q[:-1], k[-2])
        if broadcast(op, scores, attn_mask.shape) != scores or attn_mask.shape[-1:] != scores[-1:]:
            raise shape_error(op, "attn_mask does not fit the scores", scores=scores, attn_mask=attn_mask.shape)
    return TensorType(query.dtype, (*q[:-1], v[-1]))


def attention_scale(width: int) -> float:
    """Return what the products of queries and keys of a width are multiplied by."""
    return 1 / math.sqrt(width)


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> Tensor:
    scores = torch.matmul(query, key.mT) * attention_scale(query.shape[-1])
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(torch.softmax(scores, -1), value)


def _attention_flops(result: TensorType, query: TensorType, value: TensorType, **_: Any) -> int:
    scores = query.numel // query.shape[-1] * value.shape[-2]
    return scores * (2 * query.shape[-1] + 2 * value.shape[-1] + 5)  # two products; scale and softmax


define(
    "scaled_dot_product_attention",
    (tensor("query"), tensor("key"), tensor("value"), Param("attn_mask", "tensor", required=False)),
    _attention_type,
    _attention,
    "mac",
    _attention_flops,
)
