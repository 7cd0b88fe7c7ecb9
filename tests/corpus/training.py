"""Kernels of training: a Llama's layer forward and backward, adapters, fewer key heads, an optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from anew.mil import Builder, Value
from tests.corpus.blocks import (
    attend,
    attend_reference,
    causal,
    conv,
    linear,
    rms_norm,
    rms_norm_reference,
    split_heads,
    weight,
)
from tests.corpus.case import Case, built, numbers

DIM, HIDDEN, HEADS, LENGTH = 64, 160, 2, 32


def a6() -> Sequence[Case]:
    return [
        _forward_attention(),
        _forward_ffn(),
        *backward_ffn("slice_by_size"),
        _backward_attention(),
        _backward_qkv(),
    ]


def _forward_attention() -> Case:
    b = Builder()
    x, w = numbers(0, 1, DIM, 1, LENGTH), [weight(i, DIM, DIM) for i in range(4)]
    normed = rms_norm(b, b.input("x", x.shape))
    q, k, v = (conv(b, normed, part) for part in w[:3])
    mixed = attend(b, *(split_heads(b, part, HEADS) for part in (q, k, v)), causal(b, LENGTH))
    n = rms_norm_reference(x)
    qr, kr, vr = (linear(n, part) for part in w[:3])
    mixed_r = attend_reference(qr, kr, vr, HEADS)
    out = conv(b, mixed, w[3])
    return built(b, {"x": x}, {out: linear(mixed_r, w[3]), q: qr, k: kr, v: vr, mixed: mixed_r, normed: n})


def _forward_ffn() -> Case:
    b = Builder()
    x = numbers(0, 1, DIM, 1, LENGTH)
    w1, w3, w2 = weight(1, HIDDEN, DIM), weight(2, HIDDEN, DIM), weight(3, DIM, HIDDEN)
    normed = rms_norm(b, b.input("x", x.shape))
    h1, h3 = conv(b, normed, w1), conv(b, normed, w3)
    gate = b.op("mul", x=b.op("mul", x=h1, y=b.op("sigmoid", x=h1)), y=h3)
    n = rms_norm_reference(x)
    h1r, h3r = linear(n, w1), linear(n, w3)
    gate_r = F.silu(h1r) * h3r
    out = conv(b, gate, w2)
    return built(b, {"x": x}, {out: linear(gate_r, w2), h1: h1r, h3: h3r, gate: gate_r, normed: n})


def backward_ffn(slicing: str) -> Sequence[Case]:
    """dx of the feed-forward; gradient, h1 and h3 come packed along the channels of one input."""
    b = Builder()
    dy, h1, h3 = (numbers(i, 1, c, 1, LENGTH) for i, c in enumerate((DIM, HIDDEN, HIDDEN)))
    w1, w3, w2 = weight(4, HIDDEN, DIM), weight(5, HIDDEN, DIM), weight(6, DIM, HIDDEN)
    packed = b.input("x", (1, DIM + 2 * HIDDEN, 1, LENGTH))

    def part(begin: int, count: int) -> Value:
        at, size = [0, begin, 0, 0], [1, count, 1, LENGTH]
        if slicing == "slice_by_size":
            return b.op(slicing, x=packed, begin=at, size=size)
        return b.op(slicing, x=packed, begin=at, end=[1, begin + count, 1, LENGTH])

    g, a, c = part(0, DIM), part(DIM, HIDDEN), part(DIM + HIDDEN, HIDDEN)
    transposed = [w.transpose(0, 1).contiguous() for w in (w2, w1, w3)]
    gate_grad = conv(b, g, transposed[0])
    s = b.op("sigmoid", x=a)
    silu = b.op("mul", x=a, y=s)
    slope = b.op("add", x=s, y=b.op("mul", x=silu, y=b.op("sub", x=b.scalar(1.0), y=s)))
    dh1 = b.op("mul", x=b.op("mul", x=gate_grad, y=c), y=slope)
    dh3 = b.op("mul", x=gate_grad, y=silu)
    dx = b.op("add", x=conv(b, dh1, transposed[1]), y=conv(b, dh3, transposed[2]))
    h1, h3 = h1.requires_grad_(), h3.requires_grad_()
    r1, r3 = torch.autograd.grad(F.silu(h1) * h3, (h1, h3), linear(dy, transposed[0]))
    expected = {dx: linear(r1, transposed[1]) + linear(r3, transposed[2]), dh1: r1, dh3: r3}
    return [built(b, {"x": torch.cat([dy, h1.detach(), h3.detach()], 1)}, expected)]


def _backward_attention() -> Case:
    """Gradients of q, k and v from the gradient of the heads' output."""
    b = Builder()
    shape = (1, HEADS, LENGTH, DIM // HEADS)
    given = {name: numbers(i, *shape) for i, name in enumerate(("g", "k", "q", "v"))}
    g, k, q, v = (b.input(name, shape) for name in given)
    scale = shape[-1] ** -0.5
    scores = b.op("matmul", x=q, y=k, transpose_x=False, transpose_y=True)
    p = b.op("softmax", x=b.op("add", x=b.op("mul", x=scores, y=scale), y=causal(b, LENGTH)), axis=-1)
    dv = b.op("matmul", x=p, y=g, transpose_x=True, transpose_y=False)
    dp = b.op("matmul", x=g, y=v, transpose_x=False, transpose_y=True)
    along = b.op("reduce_sum", x=b.op("mul", x=dp, y=p), axes=[-1], keep_dims=True)
    ds = b.op("mul", x=b.op("mul", x=p, y=b.op("sub", x=dp, y=along)), y=scale)
    dq = b.op("matmul", x=ds, y=k, transpose_x=False, transpose_y=False)
    dk = b.op("matmul", x=ds, y=q, transpose_x=True, transpose_y=False)
    leaves = [given[name].clone().requires_grad_() for name in "qkv"]
    out = F.scaled_dot_product_attention(*leaves, is_causal=True)
    wanted = torch.autograd.grad(out, leaves, given["g"])
    return built(b, given, dict(zip((dq, dk, dv), wanted, strict=True)))


def _backward_qkv() -> Case:
    b = Builder()
    grads = [numbers(i, 1, DIM, 1, LENGTH) for i in range(3)]
    w = [weight(i, DIM, DIM) for i in range(3)]
    packed = b.input("x", (1, 3 * DIM, 1, LENGTH))
    parts = [b.op("slice_by_size", x=packed, begin=[0, i * DIM, 0, 0], size=[1, DIM, 1, LENGTH]) for i in range(3)]
    q, k, v = (conv(b, x, part) for x, part in zip(parts, w, strict=True))
    dx = b.op("add", x=b.op("add", x=q, y=k), y=v)
    return built(b, {"x": torch.cat(grads, 1)}, {dx: sum(map(linear, grads, w), torch.zeros(()))})


def a18() -> Sequence[Case]:
    return [_perceptron(), _depthwise_chain(98), _adam()]


def _perceptron() -> Case:
    b = Builder()
    given = {
        "x": numbers(0, 1, 32, 64), "w1": numbers(1, 1, 64, 96, scale=0.125), "b1": numbers(2, 1, 1, 96),
        "w2": numbers(3, 1, 96, 64, scale=0.1), "b2": numbers(4, 1, 1, 64),
    }  # fmt: skip
    ports = {name: b.input(name, x.shape) for name, x in given.items()}
    flags = {"transpose_x": False, "transpose_y": False}
    h = b.op("add", x=b.op("matmul", x=ports["x"], y=ports["w1"], **flags), y=ports["b1"])
    silu = b.op("mul", x=h, y=b.op("sigmoid", x=h))
    y = b.op("add", x=b.op("matmul", x=silu, y=ports["w2"], **flags), y=ports["b2"])
    inner = F.silu(given["x"] @ given["w1"] + given["b1"])
    return built(b, given, {y: inner @ given["w2"] + given["b2"]})


def _depthwise_chain(inputs: int) -> Case:
    """One input and a scale of each channel an input more, in turn."""
    b = Builder()
    x = numbers(0, 1, 32, 64)
    given = {"x": x} | {f"w{i:02}": 1 + numbers(i, 1, 32, 64, scale=0.02) for i in range(1, inputs)}
    given = {name: value.half().double() for name, value in given.items()}
    value, wanted = b.input("x", x.shape), x
    for name in list(given)[1:]:
        value = b.op("mul", x=value, y=b.input(name, x.shape))
        wanted = wanted * given[name]
    return built(b, given, {value: wanted})


def _adam() -> Case:
    """One step of Adam, moments and weight in and out."""
    b = Builder()
    shape = (1, 64, 64)
    given = {name: numbers(i, *shape, scale=0.1) for i, name in enumerate("gmw")} | {"v": numbers(3, *shape).square()}
    g, m, v, w = (b.input(name, shape) for name in "gmvw")
    m2 = b.op("add", x=b.op("mul", x=m, y=0.9), y=b.op("mul", x=g, y=0.1))
    v2 = b.op("add", x=b.op("mul", x=v, y=0.95), y=b.op("mul", x=b.op("mul", x=g, y=g), y=0.05))
    rate = b.op("mul", x=m2, y=b.op("pow", x=b.op("add", x=v2, y=1e-4), y=-0.5))
    w2 = b.op("sub", x=w, y=b.op("mul", x=rate, y=0.01))
    mr = 0.9 * given["m"] + 0.1 * given["g"]
    vr = 0.95 * given["v"] + 0.05 * given["g"] ** 2
    return built(b, given, {m2: mr, v2: vr, w2: given["w"] - 0.01 * mr / (vr + 1e-4).sqrt()})


def a20() -> Sequence[Case]:
    return [_grouped_queries(16, 8), _grouped_queries(8, 4)]


def _grouped_queries(heads: int, kv_heads: int) -> Case:
    """Attention and the gradient of v, where a key head serves several query heads."""
    b = Builder()
    length, width, group = 32, 32, heads // kv_heads
    given = {"g": numbers(0, 1, heads, length, width), "q": numbers(1, 1, heads, length, width)}
    given |= {name: numbers(2 + i, 1, kv_heads, length, width) for i, name in enumerate("kv")}
    ports = {name: b.input(name, x.shape) for name, x in given.items()}

    def repeat(x: Value) -> Value:
        flat = b.op("reshape", x=x, shape=[kv_heads, 1, length * width])
        return b.op("reshape", x=b.op("tile", x=flat, reps=[1, group, 1]), shape=[1, heads, length, width])

    scores = b.op("matmul", x=ports["q"], y=repeat(ports["k"]), transpose_x=False, transpose_y=True)
    p = b.op("softmax", x=b.op("mul", x=scores, y=width**-0.5), axis=-1)
    out = b.op("matmul", x=p, y=repeat(ports["v"]), transpose_x=False, transpose_y=False)
    dv = b.op("matmul", x=p, y=ports["g"], transpose_x=True, transpose_y=False)
    dv = b.op("reduce_sum", x=b.op("reshape", x=dv, shape=[kv_heads, group, length * width]), axes=[1], keep_dims=True)
    dv = b.op("reshape", x=dv, shape=[1, kv_heads, length, width])
    v = given["v"].clone().requires_grad_()
    wanted = F.scaled_dot_product_attention(given["q"], given["k"], v, enable_gqa=True)
    (grad,) = torch.autograd.grad(wanted, v, given["g"])
    return built(b, given, {out: wanted.detach(), dv: grad})


def lora(rank: int = 16) -> Case:
    """y = conv(x) + (x A) B with the adapters as inputs."""
    b = Builder()
    x, base = numbers(0, 1, DIM, 1, LENGTH), weight(1, DIM, DIM)
    a, up = numbers(2, 1, DIM, 1, rank, scale=0.1), numbers(3, 1, DIM, 1, rank)
    lora_a, lora_b, port = b.input("lora_A", a.shape), b.input("lora_B", up.shape), b.input("x", x.shape)
    xt, at, bt = (b.op("transpose", x=v, perm=[0, 2, 3, 1]) for v in (port, lora_a, lora_b))
    h = b.op("matmul", x=xt, y=at, transpose_x=False, transpose_y=True)
    low = b.op("transpose", x=b.op("matmul", x=h, y=bt, transpose_x=False, transpose_y=False), perm=[0, 3, 1, 2])
    y = b.op("add", x=conv(b, port, base), y=low)
    wanted = linear(x, base) + linear(linear(x, a[:, :, 0].mT[0, :, :, None, None]), up[0, :, 0, :, None, None])
    return built(b, {"x": x, "lora_A": a, "lora_B": up}, {y: wanted})
