"""The accept list: programs that others compiled and evaluated on silicon, written from their descriptions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from anew.mil import BlobWriter, Builder, Value
from tests.corpus.case import Case, Row, built, numbers, text

Conv = dict[str, object]
ONE_BY_ONE: Conv = {
    "strides": [1, 1], "pad_type": "valid", "pad": [0, 0, 0, 0], "dilations": [1, 1], "groups": 1,
}  # fmt: skip


def conv(b: Builder, x: Value, weight: Tensor | Value, hint: str = "conv", **form: object) -> Value:
    """A convolution with a baked weight (a tensor) or a runtime one (a value)."""
    w = weight if isinstance(weight, Value) else b.array(weight.numpy(), "w")
    return b.op("conv", hint, x=x, weight=w, **(ONE_BY_ONE | form))


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """The 1x1 convolution in PyTorch."""
    return F.conv2d(x, weight)


def weight(seed: int, out: int, into: int) -> Tensor:
    """A weight [out, into, 1, 1] that keeps the size of what it multiplies."""
    return numbers(seed, out, into, 1, 1, scale=into**-0.5)


def layer_norm(b: Builder, x: Value) -> Value:
    """Over the channels, by reduce_mean and a power, as written by hand for the engine."""
    centred = b.op("sub", x=x, y=b.op("reduce_mean", x=x, axes=[1], keep_dims=True))
    variance = b.op("reduce_mean", x=b.op("mul", x=centred, y=centred), axes=[1], keep_dims=True)
    return b.op("mul", x=centred, y=b.op("pow", x=b.op("add", x=variance, y=1e-5), y=-0.5))


def layer_norm_reference(x: Tensor) -> Tensor:
    """Its meaning."""
    return F.layer_norm(x.transpose(1, -1), x.shape[1:2], eps=1e-5).transpose(1, -1)


def rms_norm(b: Builder, x: Value) -> Value:
    """Over the channels, by reduce_sum and a power."""
    total = b.op("reduce_sum", x=b.op("mul", x=x, y=x), axes=[1], keep_dims=True)
    mean = b.op("add", x=b.op("mul", x=total, y=1 / x.shape[1]), y=1e-5)
    return b.op("mul", x=x, y=b.op("pow", x=mean, y=-0.5))


def rms_norm_reference(x: Tensor) -> Tensor:
    """Its meaning."""
    return x * (x.square().mean(1, keepdim=True) + 1e-5).rsqrt()


def gelu_reference(x: Tensor) -> Tensor:
    """The form with tanh."""
    return F.gelu(x, approximate="tanh")


def gelu(b: Builder, x: Value) -> Value:
    """The form with tanh, one operation at a time."""
    cubic = b.op("mul", x=b.op("mul", x=b.op("mul", x=x, y=x), y=x), y=0.044715)
    inner = b.op("mul", x=b.op("add", x=x, y=cubic), y=math.sqrt(2 / math.pi))
    return b.op("mul", x=b.op("mul", x=x, y=0.5), y=b.op("add", x=b.op("tanh", x=inner), y=1.0))


def split_heads(b: Builder, x: Value, heads: int) -> Value:
    """[1, C, 1, S] to [1, heads, S, C / heads]."""
    _, channels, _, length = x.shape
    return b.op("transpose", x=b.op("reshape", x=x, shape=[1, heads, channels // heads, length]), perm=[0, 1, 3, 2])


def attend(b: Builder, q: Value, k: Value, v: Value, mask: Value) -> Value:
    """Decomposed causal attention over heads; the result is [1, C, 1, S]."""
    scores = b.op("matmul", x=q, y=k, transpose_x=False, transpose_y=True)
    scores = b.op("add", x=b.op("mul", x=scores, y=q.shape[-1] ** -0.5), y=mask)
    out = b.op("matmul", x=b.op("softmax", x=scores, axis=-1), y=v, transpose_x=False, transpose_y=False)
    back = b.op("transpose", x=out, perm=[0, 1, 3, 2])
    return b.op("reshape", x=back, shape=[1, q.shape[1] * q.shape[3], 1, q.shape[2]])


def attend_reference(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Its meaning, on [1, C, 1, S]."""
    length = q.shape[-1]
    q, k, v = (x.reshape(1, heads, -1, length).mT for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).mT.reshape(1, -1, 1, length)


def causal(b: Builder, length: int) -> Value:
    """The additive mask of -1e4 above the diagonal, as a constant."""
    return b.array(torch.full((1, 1, length, length), -1e4).triu(1).numpy(), "mask")


def a1() -> Sequence[Case]:
    cases = []
    for left, right in ((1.0, 2.0), (1.5, 2.5)):
        b = Builder()
        x, y = b.input("x", (1, 256, 1, 64), "fp32"), b.input("y", (1, 256, 1, 64), "fp32")
        given = {name: torch.full((1, 256, 1, 64), v).double() for name, v in (("x", left), ("y", right))}
        cases.append(built(b, given, {b.op("add", "out", x=x, y=y): given["x"] + given["y"]}, tolerance=0))
    return cases


def a2() -> Sequence[Case]:
    shape = (1, 256, 1, 64)
    cases = []
    for value, published, name in ((1.0, 0.731, "silu"), (1.0, 0.841, "gelu"), (2.0, 1.0, "rms")):
        b = Builder()
        x = b.input("x", shape)
        if name == "silu":
            y = b.op("mul", x=x, y=b.op("sigmoid", x=x))
        else:
            y = gelu(b, x) if name == "gelu" else rms_norm(b, x)
        cases.append(built(b, {"x": torch.full(shape, value)}, {y: torch.full(shape, published).double()}))
    b = Builder()
    given = numbers(0, *shape)
    return [*cases, built(b, {"x": given}, {layer_norm(b, b.input("x", shape)): layer_norm_reference(given)})]


def a3() -> Sequence[Case]:
    b = Builder()
    x, w, bias = numbers(0, 1, 768, 1, 32), weight(1, 768, 768), numbers(2, 1, 768, 1, 1)
    y = b.op("add", x=conv(b, b.input("x", x.shape), w), y=b.array(bias.numpy(), "bias"))
    return [built(b, {"x": x}, {y: linear(x, w) + bias})]


def a4() -> Sequence[Case]:
    b = Builder()
    x = numbers(0, 1, 128, 1, 32)
    w = [weight(i, 128, 128) for i in range(4)]
    port = b.op("cast", x=b.input("x", x.shape, "fp32"), dtype="fp16")
    normed = layer_norm(b, port)
    q, k, v = (conv(b, normed, part) for part in w[:3])
    mixed = attend(b, *(split_heads(b, part, 2) for part in (q, k, v)), causal(b, 32))
    hidden = b.op("add", x=port, y=conv(b, mixed, w[3]))
    n = layer_norm_reference(x)
    qr, kr, vr = (linear(n, part) for part in w[:3])
    expected = (x + linear(attend_reference(qr, kr, vr, 2), w[3]), kr, vr)
    names = ("hidden", "k_cache", "v_cache")
    ports = [b.op("cast", name, x=y, dtype="fp32") for name, y in zip(names, (hidden, k, v), strict=True)]
    return [built(b, {"x": x}, dict(zip(ports, expected, strict=True)))]


def a5() -> Sequence[Case]:
    cases = []
    for length in (32, 16):
        b = Builder()
        x, up, down = numbers(0, 1, 128, 1, length), weight(1, 512, 128), weight(2, 128, 512)
        port = b.op("cast", x=b.input("x", x.shape, "fp32"), dtype="fp16")
        out = b.op("add", x=port, y=conv(b, gelu(b, conv(b, layer_norm(b, port), up)), down))
        y = b.op("cast", x=layer_norm(b, out), dtype="fp32")
        wanted = x + linear(gelu_reference(linear(layer_norm_reference(x), up)), down)
        cases.append(built(b, {"x": x}, {y: layer_norm_reference(wanted)}))
    return cases


DIM, HIDDEN, HEADS, LENGTH = 64, 160, 2, 32


def a6() -> Sequence[Case]:
    return [
        _forward_attention(),
        _forward_ffn(),
        *_backward_ffn("slice_by_size"),
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


def _backward_ffn(slicing: str) -> Sequence[Case]:
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


def a7() -> Sequence[Case]:
    return _backward_ffn("slice_by_index")


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


def a8() -> Sequence[Case]:
    return [lora()]


def a9() -> Sequence[Case]:
    cases = []
    for count, axis in ((3, 1), (6, 1), (4, 3)):
        b = Builder()
        given = {f"x{i}": numbers(i, 1, 32, 1, 64) for i in range(count)}
        values = tuple(b.input(name, x.shape) for name, x in given.items())
        y = b.op("concat", values=values, axis=axis, interleave=False)
        cases.append(built(b, given, {y: torch.cat(list(given.values()), axis)}, tolerance=0))
    return cases


def a10() -> Sequence[Case]:
    cases = []
    for length, out in ((256, 2304), (512, 6144)):
        b = Builder()
        x, w = numbers(0, 1, 64, 1, length), numbers(1, 1, 64, 1, out, scale=0.1)
        packed = b.input("x", (1, 64, 1, length + out))
        rows = b.op("slice_by_size", x=packed, begin=[0, 0, 0, 0], size=[1, 64, 1, length])
        columns = b.op("slice_by_size", x=packed, begin=[0, 0, 0, length], size=[1, 64, 1, out])
        left, right = (b.op("reshape", x=v, shape=[1, 1, 64, v.shape[-1]]) for v in (rows, columns))
        y = b.op("matmul", x=left, y=right, transpose_x=True, transpose_y=False)
        cases.append(built(b, {"x": torch.cat([x, w], 3)}, {y: x[:, :, 0].mT[:, None] @ w[:, :, 0][:, None]}))
    return cases


def a11() -> Sequence[Case]:
    b = Builder()
    x, w = numbers(0, 1, 64, 1, 32), numbers(1, 1, 96, 64, scale=0.125)
    flat = b.op("reshape", x=b.input("x", x.shape), shape=[1, 64, 32])
    y = b.op("matmul", x=b.input("w", w.shape), y=flat, transpose_x=False, transpose_y=False)
    return [built(b, {"x": x, "w": w}, {y: w @ x[:, :, 0]})]


def a12a() -> Sequence[Case]:
    b = Builder()
    x, w = numbers(0, 1, 64, 32), numbers(1, 1, 512, 64, scale=0.125)
    y = b.op("matmul", x=b.array(w.numpy(), "w"), y=b.input("x", x.shape), transpose_x=False, transpose_y=False)
    product = built(b, {"x": x}, {y: w @ x})
    b = Builder()
    x, wide = numbers(2, 1, 64, 1, 32), weight(3, 32000, 64)
    return [product, built(b, {"x": x}, {conv(b, b.input("x", x.shape), wide): linear(x, wide)})]


def a12b() -> Sequence[Case]:
    b = Builder()
    x = numbers(4, 1, 32000, 1, 4)
    return [built(b, {"x": x}, {b.op("softmax", x=b.input("x", x.shape), axis=1): x.softmax(1)})]


def a13() -> Sequence[Case]:
    b = Builder()
    given = dict(zip("qkv", (numbers(i, 1, 2, 32, 32) for i in range(3)), strict=True))
    given["mask"] = numbers(3, 1, 1, 32, 32)
    query, key, value, mask = (b.input(name, x.shape) for name, x in given.items())
    y = b.op("scaled_dot_product_attention", query=query, key=key, value=value, attn_mask=mask)
    attention = built(b, given, {y: F.scaled_dot_product_attention(*given.values())})
    b = Builder()
    x, w, bias = numbers(0, 32, 64), numbers(1, 96, 64, scale=0.125), numbers(2, 96)
    port = b.input("x", x.shape)
    normed = b.op("layer_norm", x=port, axes=[-1], epsilon=1e-5)
    n = F.layer_norm(x, (64,))
    h = b.op("linear", x=normed, weight=b.array(w.numpy(), "w"), bias=b.array(bias.numpy(), "bias"))
    g = b.op("gelu", x=h, mode="TANH_APPROXIMATION")
    gr = gelu_reference(F.linear(n, w, bias))
    ratio = b.op("real_div", x=g, y=b.scalar(2.0))
    y = b.op("concat", values=(ratio, port), axis=1, interleave=False)
    return [attention, built(b, {"x": x}, {y: torch.cat([gr / 2, x], 1)}, tolerance=2e-2)]


def a14() -> Sequence[Case]:
    codes = torch.randint(-60, 60, (32, 64, 1, 1), generator=torch.Generator().manual_seed(0))
    x = numbers(1, 1, 64, 1, 32)
    blob = BlobWriter()
    offset = blob.add(codes.to(torch.int8).numpy(), "int8")
    body = f"""
    tensor<fp16, [32, 64, 1, 1]> W = constexpr_affine_dequantize()[axis = int32(0), name = string("W"),
        quantized_data = tensor<int8, [32, 64, 1, 1]>(BLOBFILE(path = string("@model_path/weights.bin"),
        offset = uint64({offset}))), scale = fp16(0x1p-8), zero_point = int8(0)];
    string valid = const()[name = string("valid"), val = string("valid")];
    tensor<int32, [2]> ones = const()[name = string("ones"), val = tensor<int32, [2]>([1, 1])];
    tensor<int32, [4]> zeros = const()[name = string("zeros"), val = tensor<int32, [4]>([0, 0, 0, 0])];
    int32 one = const()[name = string("one"), val = int32(1)];
    tensor<fp16, [1, 32, 1, 32]> c = conv(dilations = ones, groups = one, pad = zeros, pad_type = valid,
        strides = ones, weight = W, x = x)[name = string("c")];
    string int8 = const()[name = string("int8"), val = string("int8")];
    fp16 s = const()[name = string("s"), val = fp16(0x1p-4)];
    tensor<int8, [1, 32, 1, 32]> q = quantize(input = c, output_dtype = int8, scale = s)[name = string("q")];
    tensor<fp16, [1, 32, 1, 32]> y = dequantize(input = q, scale = s)[name = string("y")];"""
    c = linear(x, codes.double() / 256)
    wanted = {"y": (c * 16).round().clamp(-128, 127) / 16}
    return [Case(text("tensor<fp16, [1, 64, 1, 32]> x", body, "y"), {"x": x}, wanted, blob.to_bytes())]


def a15() -> Sequence[Case]:
    """A bank of 224 procedures over one weight file; the first and the last are run, at both lengths."""
    procedures, functions, wanted = 224, [], {}
    blob, x = BlobWriter(), {length: numbers(0, 1, 32, 1, length) for length in (2048, 4096)}
    for i in range(procedures):
        generator = torch.Generator().manual_seed(i)
        codes = torch.randint(-127, 128, (32, 32, 1, 1), generator=generator)
        scales = numbers(i, 32, 1, 1, 1).abs() / 256
        at = [blob.add(codes.to(torch.int8).numpy(), "int8"), blob.add(scales.half().numpy(), "fp16")]
        length = 4096 if i else 2048
        functions.append(_procedure(i, length, *at))
        if i in (0, procedures - 1):
            wanted[i] = (length, linear(x[length], codes * scales.half().double()))
    bank = "program(1.3)\n{\n" + "".join(functions) + "}\n"
    return [
        Case(bank, {"x": x[length]}, {"y": y}, blob.to_bytes(), function=f"procedure{i:03}")
        for i, (length, y) in wanted.items()
    ]


def _procedure(number: int, length: int, data: int, scale: int) -> str:
    def blob_file(offset: int) -> str:
        return f'BLOBFILE(path = string("@model_path/weights/weight.bin"), offset = uint64({offset}))'

    return f"""
  func procedure{number:03}<ios18>(tensor<fp16, [1, 32, 1, {length}]> x) {{
    tensor<fp16, [32, 32, 1, 1]> W = constexpr_blockwise_shift_scale(
        data = tensor<int8, [32, 32, 1, 1]>({blob_file(data)}),
        scale = tensor<fp16, [32, 1, 1, 1]>({blob_file(scale)}))[name = string("W")];
    tensor<fp16, [1, 32, 1, {length}]> y = conv(dilations = [1, 1], groups = 1, pad = [0, 0, 0, 0],
        pad_type = "valid", strides = [1, 1], weight = W, x = x)[name = string("y")];
  }} -> (y);
"""


def a16() -> Sequence[Case]:
    b = Builder()
    x = numbers(0, 1, DIM, 1, LENGTH)
    gate, up, down = weight(1, HIDDEN, DIM), weight(2, HIDDEN, DIM), weight(3, DIM, HIDDEN)
    port = b.input("x", x.shape)
    h = conv(b, port, gate)
    inner = b.op("mul", x=b.op("mul", x=h, y=b.op("sigmoid", x=h)), y=conv(b, port, up))
    return [built(b, {"x": x}, {conv(b, inner, down): linear(F.silu(linear(x, gate)) * linear(x, up), down)})]


def a17() -> Sequence[Case]:
    functions = "".join(
        f"""
  func {name}<ios18>(tensor<fp16, [1, 32, 1, 64]> x) {{
    tensor<fp16, [1, 32, 1, 64]> y = {operation}(x = x)[name = string("y")];
  }} -> (y);"""
        for name, operation in (("first", "relu"), ("second", "abs"))
    )
    x = numbers(0, 1, 32, 1, 64)
    source = f"program(1.3)\n{{{functions}\n}}\n"
    return [
        Case(source, {"x": x}, {"y": y}, function=name, tolerance=0)
        for name, y in (("first", x.relu()), ("second", x.abs()))
    ]


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


def a19() -> Sequence[Case]:
    b = Builder()
    x = numbers(0, 1, 16, 1, 8)
    y = conv(b, b.input("x", x.shape), torch.eye(16).double()[..., None, None])
    return [built(b, {"x": x}, {y: x}, tolerance=1e-3)]


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


def a21() -> Sequence[Case]:
    cases = []
    for out, into in ((4, 16385), (16385, 4)):
        b = Builder()
        x, w = numbers(0, 1, into, 1, 8), weight(1, out, into)
        cases.append(built(b, {"x": x}, {conv(b, b.input("x", x.shape), w): linear(x, w)}))
    b = Builder()
    x = numbers(0, 1, 1, 1, 16384)
    cases.append(built(b, {"x": x}, {b.op("abs", x=b.input("x", x.shape)): x.abs()}, tolerance=0))
    b = Builder()
    x, w = numbers(0, 1, 4, 32, 8), numbers(1, 4, 4, 16, 1, scale=0.125)
    return [*cases, built(b, {"x": x}, {conv(b, b.input("x", x.shape), w): F.conv2d(x, w)})]


MADERIX, ORION, ANEFORGE = "maderix/ANE", "Orion", "ANEForge"

ACCEPT = (
    Row("A1", "add of two fp32 inputs [1, 256, 1, 64]", "M4 Max, 15", f"{ORION} hello_mil.m", a1, switches=("fp32",)),
    Row("A2", "SiLU, GELU with tanh, RMSNorm, LayerNorm by reduce_mean", "M4 Max", f"{ORION} test_mil_builder.m", a2,
        switches=("reduce_mean",)),
    Row("A3", "conv 1x1 of 768 channels, then add of a bias", "M4 Max", f"{ORION} test_delta_compile.m", a3),
    Row("A4", "GPT-2 attention with fp32 ports and three results", "M4 Max", f"{ORION} test_ane_prefill.m", a4,
        switches=("fp32", "reduce_mean")),
    Row("A5", "GPT-2 feed-forward and final norm, lengths 32 and 16, fp32 ports", "M4 Max",
        f"{ORION} test_decode_ane.m", a5, switches=("fp32", "reduce_mean")),
    Row("A6", "a Llama's training kernels, 3 to 6 results each", "M4 Max", f"{ORION} test_train_kernels.m", a6),
    Row("A7", "slice_by_index of an input's channels", "M4 Max", f"{ORION} test_train_kernels.m", a7),
    Row("A8", "linear layer with LoRA adapters as inputs", "M4 Max", f"{ORION} test_lora.m", a8),
    Row("A9", "concat of 3 to 6 values, axes 1 and 3", "M1 to M5", f"{MADERIX}, Espresso", a9,
        switches=("concat_inputs",)),
    Row("A10", "matmul of parts sliced from rows of 2560 and 6656", "M1 to M5", f"{MADERIX}, dynamic", a10),
    Row("A11", "matmul of two inputs", "", f"{MADERIX} pull request 22", a11),
    Row("A12a", "matmul with a constant, conv to 32000 channels", "M4", f"{MADERIX} ane_classifier.h", a12a),
    Row("A12b", "softmax over 32000 channels", "M4", f"{MADERIX} ane_classifier.h", a12b, chips=("m4", "m5"),
        reason="axis of 32000 elements", switches=("softmax_power_of_2",)),
    Row("A13", "attention, layer_norm, linear, gelu, real_div as operations", "M4 Max, 15",
        f"{MADERIX} pull request 40", a13, switches=("sdpa_mask",)),
    Row("A14", "constexpr_affine_dequantize, quantize, dequantize", "M4, M5 Max", f"{MADERIX} ane_int8_bench.m", a14),
    Row("A15", "bank of 224 procedures with int8 weights, lengths 2048 and 4096", "M1 to M5, 15.7 to 27.0", "oMLX",
        a15),
    Row("A16", "fused SwiGLU of three conv", "M3 to M5", "oMLX, ane-infer", a16),
    Row("A17", "several functions in a program", "M5, 26.3", "ane-infer", a17),
    Row("A18", "perceptron with weights as inputs, chain of 98 inputs, Adam", "M1, 26", "imperatormk", a18),
    Row("A19", "identity as a conv [1, 16, 1, 8]", "M3 Pro", "libane", a19),
    Row("A20", "attention with fewer key than query heads, forward and backward", "M4, M4 Pro, M5 Max",
        f"{MADERIX}, parameter-golf pull request 801", a20, switches=("gqa",)),
    Row("A21", "conv of 16385 channels in or out, axis of 16384, kernel height 16", "M1", "ane-guide", a21),
)  # fmt: skip
