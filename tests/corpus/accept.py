"""The accept list: programs that others compiled and evaluated on silicon, written from their descriptions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from anew.mil import BlobWriter, Builder
from tests.corpus.blocks import (
    attend,
    attend_reference,
    causal,
    conv,
    gelu,
    gelu_reference,
    layer_norm,
    layer_norm_reference,
    linear,
    rms_norm,
    split_heads,
    weight,
)
from tests.corpus.case import Case, Row, built, numbers, text
from tests.corpus.training import DIM, HIDDEN, LENGTH, a6, a18, a20, backward_ffn, lora


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


def a7() -> Sequence[Case]:
    return backward_ffn("slice_by_index")


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


def a19() -> Sequence[Case]:
    b = Builder()
    x = numbers(0, 1, 16, 1, 8)
    y = conv(b, b.input("x", x.shape), torch.eye(16).double()[..., None, None])
    return [built(b, {"x": x}, {y: x}, tolerance=1e-3)]


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
