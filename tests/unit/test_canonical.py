"""Rewrites before autograd: attention, RMS norm and their gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from anew.compiler.custom_ops import MASKED
from anew.frontend.attention import attention
from anew.frontend.canonical import canonicalize
from anew.frontend.functions import rms_norm


def captured(function, *inputs):
    """The Dynamo graph of a function after the rewrites."""
    graphs = []

    def backend(module, example_inputs):
        canonicalize(module)
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    result = torch.compile(function, backend=backend, fullgraph=True)(*inputs)
    (graph,) = graphs
    return graph, result


def targets(module):
    return [getattr(n.target, "__name__", str(n.target)) for n in module.graph.nodes if n.op.startswith("call")]


def qkv(heads=4, kv_heads=4, length=5, keys=5, size=8):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, length, size), (2, kv_heads, keys, size), (2, kv_heads, keys, size)]
    return [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]


FLOAT_MASK = torch.randn(2, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
BOOL_MASK = (FLOAT_MASK > 0) | torch.eye(5, dtype=torch.bool)
CASES = {
    "plain": ({}, {}),
    "causal": ({}, {"is_causal": True}),
    "causal, more keys than queries": ({"keys": 7}, {"is_causal": True}),
    "bool mask": ({}, {"attn_mask": BOOL_MASK}),
    "bool mask of two axes": ({}, {"attn_mask": BOOL_MASK[0, 0]}),
    "float mask": ({}, {"attn_mask": FLOAT_MASK}),
    "grouped": ({"kv_heads": 2}, {"enable_gqa": True}),
    "grouped, causal": ({"kv_heads": 1}, {"enable_gqa": True, "is_causal": True}),
    "grouped, mask": ({"kv_heads": 2}, {"enable_gqa": True, "attn_mask": BOOL_MASK}),
    "scale": ({}, {"scale": 0.3}),
    "cross": ({"keys": 9}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_attention_is_torch_s(case):
    sizes, arguments = CASES[case]
    inputs = qkv(**sizes)
    found, wanted = attention(*inputs, **arguments), F.scaled_dot_product_attention(*inputs, **arguments)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    gradients = [torch.autograd.grad(y, inputs, cotangent) for y in (found, wanted)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_attention_is_replaced_in_a_captured_graph():
    q, k, v = (x.detach().float() for x in qkv())
    graph, result = captured(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), q, k, v)
    assert targets(graph) == ["attention"]
    torch.testing.assert_close(result, F.scaled_dot_product_attention(q, k, v, is_causal=True))


def test_masks_are_finite_in_fp16():
    assert torch.tensor(2 * MASKED).half().isfinite()  # a causal mask and another may add up
    mask = torch.tensor([[True, False]])
    assert torch.ops.anew.additive_mask(mask).tolist() == [[0.0, MASKED]]
    assert torch.ops.anew.additive_mask(torch.tensor([-torch.inf, -1e9, -5.5])).tolist() == [MASKED, MASKED, -5.5]
    assert torch.ops.anew.causal_mask(2, 3).tolist() == [[0.0, MASKED, MASKED], [0.0, 0.0, MASKED]]


def test_rows_are_visible_unless_all_false_or_all_minus_infinity():
    rows = torch.tensor([[True, False], [False, False]])
    assert torch.ops.anew.visible_rows(rows).tolist() == [[1.0], [0.0]]
    rows = torch.tensor([[-torch.inf, 0.0], [-torch.inf, -torch.inf], [torch.finfo(torch.float32).min] * 2])
    assert torch.ops.anew.visible_rows(rows).tolist() == [[1.0], [0.0], [1.0]]


@pytest.mark.parametrize("operation", [torch.ops.anew.additive_mask, torch.ops.anew.visible_rows])
@pytest.mark.parametrize("mask", [BOOL_MASK, FLOAT_MASK, FLOAT_MASK.float().requires_grad_()])
def test_operations_on_masks_are_registered_right(operation, mask):
    mask = mask.detach() if operation is torch.ops.anew.visible_rows else mask
    torch.library.opcheck(operation.default, (mask,))


def test_rows_without_a_visible_key_are_zero_and_have_no_gradient():
    visible = BOOL_MASK.clone()
    visible[0, :, 2] = False
    for mask in (visible, torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -torch.inf)):
        inputs = qkv()
        y, wanted = attention(*inputs, mask), F.scaled_dot_product_attention(*inputs, mask)
        torch.testing.assert_close(y, wanted)
        assert not y[0, :, 2].any()
        for a, b in zip(torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(wanted.sum(), inputs), strict=True):
            torch.testing.assert_close(a, b)


def repeated(x):
    return x[:, :, None, :, :].expand(2, 2, 2, 5, 8).reshape(2, 4, 5, 8)


GROUPED = {
    "llama's eager": lambda q, k, v: torch.softmax(torch.matmul(q, repeated(k).transpose(2, 3)), -1) @ repeated(v),
    "unsqueezed": lambda q, k, v: q @ k.unsqueeze(2).expand(2, 2, 2, 5, 8).reshape(2, 4, 5, 8).mT @ repeated(v),
    "repeat_interleave": lambda q, k, v: (
        torch.matmul(q, k.repeat_interleave(2, dim=1).transpose(-1, -2)) @ torch.repeat_interleave(v, 2, 1)
    ),
    "sdpa": lambda q, k, v: F.scaled_dot_product_attention(q, repeated(k), value=repeated(v)),
}


@pytest.mark.parametrize("name", GROUPED)
def test_repeated_keys_are_shared(name):
    q, k, v = (x.detach().float() for x in qkv(kv_heads=2))
    graph, result = captured(GROUPED[name], q, k, v)
    torch.testing.assert_close(result, GROUPED[name](q, k, v))
    found = targets(graph)
    assert found.count("grouped_matmul") + 2 * found.count("attention") == (1 if name == "unsqueezed" else 2)
    assert ("expand" in found) == (name == "unsqueezed")  # its .mT is not matched


@pytest.mark.parametrize(
    "near_miss",
    [
        lambda q, k: q @ k[:, :, None].expand(2, 2, 2, 5, 8).transpose(1, 2).reshape(2, 4, 5, 8).transpose(2, 3),
        lambda q, k: q @ k[:, [1, 0], None].expand(2, 2, 2, 5, 8).reshape(2, 4, 5, 8).transpose(2, 3),
        lambda q, k: q @ k[:, None].expand(2, 2, 2, 5, 8).reshape(2, 4, 5, 8).transpose(2, 3),
        lambda q, k: q @ k.repeat(1, 2, 1, 1).transpose(2, 3),
        lambda q, k: q @ k.repeat_interleave(torch.tensor([1, 3]), 1, output_size=4).transpose(2, 3),
    ],
)
def test_keys_repeated_in_another_order_stay_as_they_are(near_miss):
    q, k, _ = (x.detach().float() for x in qkv(kv_heads=2))
    graph, result = captured(near_miss, q, k)
    assert "grouped_matmul" not in targets(graph)
    torch.testing.assert_close(result, near_miss(q, k))


@pytest.mark.parametrize(
    "near_miss",
    [
        lambda x, m: (x @ x) + m,  # no softmax
        lambda x, m: (lambda s: torch.softmax(s, -1) + s)(x @ x + m),  # read elsewhere, too
        lambda x, m: torch.softmax((x @ x) + (x @ m), -1),
        lambda x, m: torch.softmax(torch.add(x @ x, m, alpha=2), -1),
        lambda x, m: torch.softmax(x + m, -1),
    ],
)
def test_what_is_no_mask_stays_as_it_is(near_miss):
    x, m = torch.randn(5, 5), torch.randn(5, 5)
    graph, result = captured(near_miss, x, m)
    assert "additive_mask" not in "".join(targets(graph))
    torch.testing.assert_close(result, near_miss(x, m))


def test_llama_s_norm_is_one_operation():
    norm = LlamaRMSNorm(8, eps=1e-5)
    x = torch.randn(2, 3, 8)
    graph, result = captured(norm, x)
    assert targets(graph) == ["_normalized", "mul"]
    (node,) = [n for n in graph.graph.nodes if n.name.startswith("_normalized")]
    assert node.args[1] == 1e-5
    torch.testing.assert_close(result, norm(x))


@pytest.mark.parametrize(
    "norm",
    [
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda x: torch.rsqrt(torch.square(x).mean((-1,), True) + 1e-6) * x,
        lambda x: x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + 1e-6),
    ],
)
def test_spellings_of_the_norm_are_matched(norm):
    x = torch.randn(2, 3, 8)
    graph, result = captured(norm, x)
    assert targets(graph) == ["_normalized"]
    torch.testing.assert_close(result, norm(x))


@pytest.mark.parametrize(
    "near_miss",
    [
        lambda x: (x + 1) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1) + 1e-6)[..., None],
        lambda x: x[0] * torch.rsqrt(x[0].pow(2).mean(-1) + 1e-6),
        lambda x: x * torch.rsqrt(x.pow(2).mean(-2, keepdim=True) + 1e-6),
        lambda x: x * torch.rsqrt(x.pow(3).mean(-1, keepdim=True) + 1e-6),
        lambda x: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6),
        lambda x: x * torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)),
        lambda x: x * torch.rsqrt((x * x.flip(0)).mean(-1, keepdim=True) + 1e-6),
        lambda x: x * torch.rsqrt(torch.add(x.pow(2).mean(-1, keepdim=True), 1e-6, alpha=3)),
        lambda x: x * torch.rsqrt(x.pow(exponent=2).mean(-1, keepdim=True).add(x[..., :1])),
        lambda x: x * torch.rsqrt(input=x.pow(2).mean(-1, keepdim=True) + 1e-6),
    ],
)
def test_near_misses_stay_as_they_are(near_miss):
    x = torch.rand(8, 8, 8) + 0.5
    graph, result = captured(near_miss, x)
    assert "_normalized" not in targets(graph)
    torch.testing.assert_close(result, near_miss(x))


def test_torch_s_rms_norm_becomes_anew_s():
    x, weight = torch.randn(2, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    for arguments in ((None, None), (weight, 1e-3)):
        torch.testing.assert_close(rms_norm(x, (8,), *arguments), F.rms_norm(x, (8,), *arguments))
    torch.testing.assert_close(rms_norm(x, (2, 8)), F.rms_norm(x, (2, 8)))
    graph, _ = captured(nn.RMSNorm(8), x.float())
    assert targets(graph) == ["rms_norm"]
    assert next(n.target for n in graph.graph.nodes if n.op == "call_function") is rms_norm


def test_rms_norm_has_the_right_derivative():
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: torch.ops.anew.rms_norm(x, 1e-3)[0], (x,))
    with pytest.raises(RuntimeError, match="second result is not differentiable"):
        torch.ops.anew.rms_norm(x, 1e-3)[1].sum().backward()


@pytest.mark.parametrize("operation", [torch.ops.anew.rms_norm, torch.ops.anew.rms_norm_backward])
def test_custom_operations_are_registered_right(operation):
    x = torch.randn(3, 7)
    arguments = (x, 1e-3) if operation is torch.ops.anew.rms_norm else (x, x, x[:, :1].abs())
    torch.library.opcheck(operation.default, arguments, test_utils=("test_schema", "test_faketensor"))


def test_casts_to_the_same_type_disappear():
    graph, _ = captured(lambda x: x.float().to(torch.float32) * 2, torch.ones(3))
    assert targets(graph) == ["mul"]
    graph, _ = captured(lambda x: x.to(torch.float32, copy=True).add_(1), torch.ones(3))
    assert targets(graph) == ["to", "add_"]
    graph, result = captured(lambda x: x.to(torch.float64) * 2, torch.ones(3))
    assert targets(graph) == ["to", "mul"]
    assert result.dtype == torch.float64


@pytest.mark.parametrize("narrows", [True, False])
def test_an_adapter_is_scaled_where_it_is_narrow(narrows):
    generator = torch.Generator().manual_seed(0)
    x, wide, narrow = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((3, 8), (8, 2), (2, 8)))
    weights = (narrow, wide) if narrows else (wide, narrow)  # linear's weights are [results, inputs]

    def adapter(x, down, up):
        return x + 0.3 * F.linear(F.linear(x, down), up)

    inputs = x if narrows else x[:, :2].contiguous()
    graph, found = captured(adapter, inputs, *weights)
    torch.testing.assert_close(found, adapter(inputs, *weights), rtol=1e-12, atol=0.0)
    order = [name for name in targets(graph) if name in ("linear", "mul")]
    assert order == (["linear", "mul", "linear"] if narrows else ["linear", "linear", "mul"])
