"""Sums of softmax's gradient over features: where they are rewritten, where they are not, and that gradients stay."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from anew.frontend.options import Options
from anew.frontend.session import session_for
from anew.mil import parse_program

pytestmark = pytest.mark.usefixtures("fresh")

STRICT = {"strict": True}
HEADS, LENGTH, SIZE = 4, 32, 8
WIDTH = HEADS * SIZE
MASK = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(-1)  # the first row sees nothing


def split(x, weight, heads=HEADS):
    return (x @ weight).view(2, LENGTH, heads, SIZE).transpose(1, 2)


def fused(q, k, v, **how):
    return F.scaled_dot_product_attention(q, k, v, **how)


def eager(q, k, v, dim=-1, change=lambda weights: weights):
    return change(((q @ k.transpose(2, 3)) * SIZE**-0.5).softmax(dim)) @ v


def attention(mix, groups=HEADS, join=lambda x: x.transpose(1, 2).reshape(2, LENGTH, WIDTH)):
    """A function of x and the four matrices of an attention layer."""

    def f(x, q, k, v, out):
        return (
            join(mix(split(x, q), split(x, k[:, : groups * SIZE], groups), split(x, v[:, : groups * SIZE], groups)))
            @ out
        )

    return f


def also(weights):
    """Softmax goes elsewhere too."""
    return weights * weights


CASES = {
    "causal": attention(lambda *qkv: fused(*qkv, is_causal=True)),
    "masked": attention(lambda *qkv: fused(*qkv, attn_mask=MASK)),
    "dropout": attention(lambda *qkv: fused(*qkv, dropout_p=0.25)),
    "grouped": attention(lambda *qkv: fused(*qkv, is_causal=True, enable_gqa=True), groups=2),
    "eager": attention(eager),
    "eager, dropout": attention(lambda *qkv: eager(*qkv, change=lambda w: F.dropout(w, 0.25))),
    "permuted": attention(eager, join=lambda x: x.permute(0, 2, 1, 3).contiguous().view(2, LENGTH, WIDTH)),
    "checkpointed": lambda *args: checkpoint(attention(eager), *args, use_reentrant=False),
}
OTHERS = {
    "over queries": attention(lambda *qkv: eager(*qkv, dim=-2)),
    "squared": attention(lambda *qkv: eager(*qkv, change=also)),
    "read twice": attention(lambda q, k, v: (w := eager(q, k, torch.eye(LENGTH).expand(2, HEADS, -1, -1))) @ v + w @ q),
    "mixes as many features as keys": attention(
        lambda q, k, v: eager(q, k, torch.cat([v] * (LENGTH // SIZE), -1)),
        join=lambda x: x[..., :SIZE].transpose(1, 2).reshape(2, LENGTH, WIDTH),
    ),
}


def step(function, frozen=False):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, LENGTH, WIDTH)] + [(WIDTH, WIDTH)] * 4
    args = [nn.Parameter(torch.randn(s, generator=generator) * (1.0 if len(s) == 3 else 0.3)) for s in shapes]
    args[-1].requires_grad_(not frozen)
    torch.manual_seed(1)
    y = function(*args)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)))
    return [y.detach(), *(p.grad for p in args if p.requires_grad)]


def check(function, frozen=False):
    """Values and gradients are PyTorch's; returns how many elements the backward's sums over a last axis read."""
    found = step(torch.compile(function, backend="anew", dynamic=False, fullgraph=True, options=STRICT), frozen)
    for a, b in zip(found, step(function, frozen), strict=True):
        assert (a - b).norm() <= 6e-3 * b.norm()
    plan = session_for(Options(strict=True)).plans[-1]
    ops = parse_program(plan.text, plan.weights).function(None).ops
    return [op.inputs["x"].type.numel for op in ops if op.kind == "reduce_sum"]


@pytest.mark.parametrize("name", CASES)
def test_sums_are_of_features(name):
    assert check(CASES[name]) == [2 * HEADS * LENGTH * SIZE]


@pytest.mark.parametrize("name", OTHERS)
def test_other_gradients_of_softmax_stay(name):
    assert 2 * HEADS * LENGTH * LENGTH in check(OTHERS[name])


def test_what_was_mixed_is_saved_for_the_sums_where_that_pays():
    """A frozen layer behind attention does not read it in the backward pass; keys are 4 times the features here."""
    assert check(attention(eager), frozen=True) == [2 * HEADS * LENGTH * SIZE]


def test_it_is_not_saved_where_that_costs_more():
    """Keys are twice the features here."""
    twice = attention(lambda q, k, v: eager(q, k, torch.cat([v, v], -1)), join=lambda x: x[..., :SIZE].flatten(1, 2))
    assert check(lambda x, q, k, v, out: twice(x, q, k, v, out[:SIZE]), frozen=True) == [2 * HEADS * LENGTH * LENGTH]
