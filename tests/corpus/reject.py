"""The reject list: programs that others saw refused, fail or compute wrong values, written from their descriptions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from anew.device.emulator.engine import EmulatedEngine
from anew.mil import Builder, Value, print_program
from tests.corpus.accept import ANEFORGE, MADERIX, ORION
from tests.corpus.blocks import (
    attend,
    attend_reference,
    causal,
    conv,
    layer_norm,
    layer_norm_reference,
    linear,
    rms_norm,
    rms_norm_reference,
    split_heads,
    weight,
)
from tests.corpus.case import Case, Row, Run, built, numbers, packed, text
from tests.corpus.training import lora

X = "tensor<fp16, [1, 64, 1, 32]> x"


def of_one(operation: str, arguments: str = "x = x", ports: str = X, result: str = "fp16, [1, 64, 1, 32]") -> Case:
    """A program of one operation, which is not expected to run."""
    return Case(text(ports, f'    tensor<{result}> y = {operation}({arguments})[name = string("y")];', "y"))


def unary(shape: tuple[int, ...], kind: str = "relu", dtype: str = "fp16") -> Case:
    """relu, or another operation, of a tensor of a shape."""
    b = Builder()
    x = numbers(0, *shape)
    y = b.op(kind, x=b.input("x", shape, dtype))
    return built(b, {"x": x}, {y: {"relu": x.relu(), "abs": x.abs(), "identity": x}[kind]})


def r1() -> Sequence[Run]:
    ports = "tensor<fp16, [1, 64, 1, 32]> a, tensor<fp16, [1, 64, 1, 32]> b"
    return [of_one("concat", "axis = 1, values = (a, b)", ports, "fp16, [1, 128, 1, 32]")]


def r2() -> Sequence[Run]:
    """Results of 64 and 160 channels bound in the order of the text, as if ports were not sorted by name."""

    def run(engine: EmulatedEngine) -> None:
        b = Builder()
        x = b.input("x", (1, 64, 1, 32))
        wide = conv(b, x, weight(0, 160, 64), "gate")
        operation = engine.compile(
            *print_program(b.program([conv(b, wide, weight(1, 64, 160), "out"), wide]))
        ).operation()
        in_order = [engine.buffers.lease((1, channels, 1, 32)) for channels in (64, 160)]
        operation.bind(dict(zip(("gate", "out"), in_order, strict=True)))

    return [run]


def r3() -> Sequence[Run]:
    return [packed(unary((1, 768, 1, 1), "abs", "fp32"))]


def r4() -> Sequence[Run]:
    return [packed(unary((1, 4, 1, 4)))]


def r5() -> Sequence[Run]:
    return [of_one("gelu")]


def r6() -> Sequence[Run]:
    ports = "tensor<fp16, [1, 2, 32, 32]> a, tensor<fp16, [1, 2, 32, 32]> b"
    line = "    tensor<fp16, [1, 2, 32, 32]> y = matmul(x = a, y = b, transpose_x = {}, transpose_y = false);"
    a, b = numbers(0, 1, 2, 32, 32), numbers(1, 1, 2, 32, 32)
    return [Case(text(ports, line.format("true"), "y"), {"a": a, "b": b}, {"y": a.mT @ b})]


def r7() -> Sequence[Run]:
    b = Builder()
    x, w, bias = numbers(0, 1, 64, 1, 32), weight(1, 64, 64), numbers(2, 64)
    y = conv(b, b.input("x", x.shape), w, bias=b.array(bias.numpy(), "bias"))
    return [built(b, {"x": x}, {y: F.conv2d(x, w, bias)})]


def r8() -> Sequence[Run]:
    return [Case(text(X, "    tensor<fp16, [1, 64, 1, 32]> y = relu(x = x);", "y, eliminated"))]


def r10() -> Sequence[Run]:
    return [packed(lora())]


def _tiny() -> tuple[str, bytes]:
    return text(X, '    tensor<fp16, [1, 64, 1, 32]> y = relu(x = x)[name = string("y")];', "y"), b""


def r11a() -> Sequence[Run]:
    def run(engine: EmulatedEngine) -> None:
        loaded = [engine.compile(*_tiny()) for _ in range(128)]
        assert len(loaded) == engine.statistics.programs
        engine.compile(*_tiny())

    return [run]


def r11b() -> Sequence[Run]:
    def run(engine: EmulatedEngine) -> None:
        for _ in range(120):
            engine.compile(*_tiny()).release()

    return [run]


def r12() -> Sequence[Run]:
    return [unary((1, 8, 1, 17920))]


def r13() -> Sequence[Run]:
    cases = []
    for kind, root in (("rsqrt", torch.rsqrt), ("sqrt", torch.sqrt)):
        b = Builder()
        x = numbers(0, 1, 64, 1, 32)
        total = b.op("reduce_sum", x=b.op("square", x=b.input("x", x.shape)), axes=[1], keep_dims=True)
        y = b.op(kind, x=b.op("add", x=total, y=1e-4))
        cases.append(built(b, {"x": x}, {y: root(x.square().sum(1, keepdim=True) + 1e-4)}))
    return cases


def r14() -> Sequence[Run]:
    b = Builder()
    x, w = numbers(0, 1, 64, 1, 1), weight(1, 128, 64)
    y = conv(b, rms_norm(b, b.input("x", x.shape)), w)
    return [packed(built(b, {"x": x}, {y: linear(rms_norm_reference(x), w)}))]


def r15a() -> Sequence[Run]:
    b = Builder()
    x = numbers(0, 1, 4, 32, 48)
    return [built(b, {"x": x}, {b.op("softmax", x=b.input("x", x.shape), axis=-1): x.softmax(-1)})]


def r15b() -> Sequence[Run]:
    b = Builder()
    x, w = numbers(0, 1, 128, 1, 32), weight(1, 64, 64)
    half = b.op("slice_by_index", x=b.input("x", x.shape), begin=[0, 0, 0, 0], end=[1, 64, 1, 32])
    return [built(b, {"x": x}, {conv(b, rms_norm(b, half), w): linear(rms_norm_reference(x[:, :64]), w)})]


def r15c() -> Sequence[Run]:
    b = Builder()
    x = numbers(0, 1, 64, 1, 32) + 1
    y = b.op("reduce_mean", x=b.input("x", x.shape), axes=[1], keep_dims=True)
    return [built(b, {"x": x}, {y: x.mean(1, keepdim=True)})]


def r16() -> Sequence[Run]:
    b = Builder()
    x, w = numbers(0, 1, 64, 1, 256), [weight(i, 64, 64) for i in range(4)]
    port = b.input("x", x.shape)
    normed, n = layer_norm(b, port), layer_norm_reference(x)
    q, k, v = (split_heads(b, conv(b, normed, part), 2) for part in w[:3])
    y = b.op("add", x=port, y=conv(b, attend(b, q, k, v, causal(b, 256)), w[3]))
    mixed = attend_reference(*(linear(n, part) for part in w[:3]), heads=2)
    return [built(b, {"x": x}, {y: x + linear(mixed, w[3])})]


def r17() -> Sequence[Run]:
    b = Builder()
    x, w = numbers(0, 1, 32000, 1, 8), weight(1, 8, 32000)
    return [built(b, {"x": x}, {conv(b, b.input("x", x.shape), w): linear(x, w)})]


def r18a() -> Sequence[Run]:
    return [unary(shape) for shape in ((16385,), (1, 16385, 1, 8), (1, 1, 1, 16385), (16385, 1, 1, 8))]


def r18b() -> Sequence[Run]:
    return [unary((1, 1, 2, 2, 8, 32))]


def r18c() -> Sequence[Run]:
    b = Builder()
    x = b.input("x", (1, 2, 2, 8, 32))
    y = b.op("matmul", x=x, y=x, transpose_x=False, transpose_y=True)
    return [Case(*_text_of(b, y))]


def r18d() -> Sequence[Run]:
    b = Builder()
    return [Case(*_text_of(b, b.op("relu", x=b.input("x", (1, 0, 1, 32)))))]


def r18e() -> Sequence[Run]:
    b = Builder()
    y = conv(b, b.input("x", (1, 4, 1, 32)), numbers(0, 4, 4, 1, 16))
    return [Case(*_text_of(b, y))]


def r18f() -> Sequence[Run]:
    arguments = (
        'x = x, weight = w, strides = [1, 1], pad_type = "valid", pad = [0, 0, 0, 0], dilations = [1, 1], groups = 3'
    )
    ports = f"{X}, tensor<fp16, [64, 64, 1, 1]> w"
    return [of_one("conv", arguments, ports)]


def _text_of(b: Builder, y: Value) -> tuple[str, dict, dict, bytes]:
    source, blob = print_program(b.program([y]))
    return source, {}, {}, blob


def r19a() -> Sequence[Run]:
    b = Builder()
    x = numbers(0, 1, 64, 1, 32)
    y = b.op("cast", x=b.op("relu", x=b.op("cast", x=b.input("x", x.shape), dtype="fp32")), dtype="fp16")
    return [unary((1, 64, 1, 32), "relu", "fp32"), built(b, {"x": x}, {y: x.relu()})]


def r19b() -> Sequence[Run]:
    return [
        of_one("abs", ports=f"tensor<{dtype}, [1, 64, 1, 32]> x", result=f"{dtype}, [1, 64, 1, 32]")
        for dtype in ("int32", "int8", "bool")
    ]


def r19c() -> Sequence[Run]:
    return [of_one("relu", ports="tensor<bf16, [1, 64, 1, 32]> x", result="bf16, [1, 64, 1, 32]")]


#: Of the sweep's 36 operations those that no account calls native.
WALLED = (
    "acos", "asin", "atanh", "band_part", "cosh", "gru", "logical_and", "logical_or", "logical_xor", "lstm", "mod",
    "non_zero", "one_hot", "random_bernoulli", "random_categorical", "random_normal", "reduce_prod",
    "reverse_sequence", "rnn", "scatter", "scatter_along_axis", "scatter_nd", "shape", "sinh", "sliding_windows", "tan",
)  # fmt: skip
#: Those that a catalogue of the same project calls native on some generations.
SWEPT = (
    "crop_resize", "cumsum", "gather", "gather_along_axis", "gather_nd", "random_uniform", "reduce_argmax",
    "reduce_argmin", "slice_update",
)  # fmt: skip
#: Control flow and lists.
CONTROL = (
    "while_loop", "cond", "list_gather", "list_length", "list_read", "list_scatter", "list_write", "make_list",
)  # fmt: skip


def each(operations: Sequence[str]) -> Callable[[], Sequence[Run]]:
    """A program of one operation for each name."""
    return lambda: [of_one(operation) for operation in operations]


def r20b() -> Sequence[Run]:
    return [unary((1, 64, 1, 32), "identity")]


def r21() -> Sequence[Run]:
    """The window of 3.75 GiB stands for itself; here it is 4 KiB, and the weights 8 KiB."""

    def run(engine: EmulatedEngine) -> None:
        b = Builder()
        y = conv(b, b.input("x", (1, 64, 1, 32)), weight(0, 64, 64))
        small = EmulatedEngine(dataclasses.replace(engine.chip, weight_bytes=4096))
        small.compile(*print_program(b.program([y])))

    return [run]


def r24() -> Sequence[Run]:
    b = Builder()
    x = numbers(0, 1, 4, 32, 64)
    port = b.input("x", x.shape)
    low, high = (b.op("slice_by_size", x=port, begin=[0, 0, 0, at], size=[1, 4, 32, 32]) for at in (0, 32))
    y = b.op("concat", values=(b.op("mul", x=high, y=-1.0), low), axis=3, interleave=False)
    direct = b.op("concat", values=(high, low), axis=3, interleave=False)
    swapped = torch.cat([x[..., 32:], x[..., :32]], -1)
    wanted = torch.cat([-x[..., 32:], x[..., :32]], -1)
    return [built(b, {"x": x}, {y: wanted, direct: swapped}, tolerance=0)]


def r25() -> Sequence[Run]:
    cases = []
    for kind in ("mul", "real_div"):
        b = Builder()
        x, scale = numbers(0, 1, 64, 1, 32), numbers(1, 1, 1, 1, 32).abs() + 1
        root = b.op("sqrt", x=b.input("scale", scale.shape))
        y = b.op(kind, x=b.input("x", x.shape), y=root)
        wanted = x * scale.sqrt() if kind == "mul" else x / scale.sqrt()
        cases.append(built(b, {"x": x, "scale": scale}, {y: wanted}))
    return cases


def native_norm(width: int) -> Callable[[], Sequence[Run]]:
    """The operation layer_norm over rows of a width."""

    def cases() -> Sequence[Run]:
        b = Builder()
        x, gamma = numbers(0, 8, width), numbers(1, width)
        y = b.op("layer_norm", x=b.input("x", x.shape), axes=[-1], gamma=b.array(gamma.numpy(), "gamma"), epsilon=1e-5)
        return [built(b, {"x": x}, {y: F.layer_norm(x, (width,), gamma)})]

    return cases


PITCH = "rows start at multiples of 64 bytes"
SWEEP = f"{ANEFORGE}, sweep of the MIL vocabulary"

REJECT = (
    Row("R1", "concat without interleave", "M4 Max", f"{ORION} rule 1", r1, "parse", reason="'interleave' is missing"),
    Row("R2", "results bound in the order of the text", "M4 Max", f"{ORION} CHECKPOINT.md", r2, "eval",
        reason="port 'gate' is .* the buffer has"),
    Row("R3", "fp32 [1, 768, 1, 1] in 3072 bytes", "M4 Max", f"{ORION} CHECKPOINT.md", r3, "eval",
        reason=f"{PITCH}, 49152 bytes", switches=("row_pitch",), setting={"fp32": "allow"}),
    Row("R4", "[1, 4, 1, 4] in 32 bytes", "M4 Max", f"{ORION} hello_mil.m", r4, "eval", reason=PITCH,
        switches=("row_pitch",)),
    Row("R5", "gelu without mode", "M4 Max", f"{ORION} rule 10", r5, "parse", reason="'mode' is missing"),
    Row("R6", "matmul with the literal transpose_x = true", "M4 Max", f"{ORION} rule 15", r6, "compile",
        switches=("inline_flags",)),
    Row("R7", "conv with bias", "M4 Max", f"{ORION} rule 16", r7, "compile", switches=("conv_bias",)),
    Row("R8", "a result that no operation defines", "M4 Max", f"{ORION} rule 17", r8, "parse",
        reason="result 'eliminated' is not produced"),
    Row("R10", "LoRA inputs of rank 16 in packed memory", "M4 Max", f"{ORION} rule 12", r10, "eval", reason=PITCH,
        switches=("row_pitch",)),
    Row("R11a", "the 129th program loaded", "M5", f"{ANEFORGE}, ANEgpt", r11a, "load",
        reason="128 programs are loaded, the most"),
    Row("R11b", "the 120th compile", "M4", f"{MADERIX}, libane", r11b, "compile",
        reason="119 programs were compiled, the most", switches=("compile_budget",)),
    Row("R12", "width of 17920", "M3 Ultra", "rustane", r12, "compile", chips=("m1", "m2", "m3"),
        reason="axis of 17920 elements"),
    Row("R13", "rsqrt and sqrt after a reduction", "M3 Ultra, M4", "rustane, karpathy/autoresearch", r13, "compile",
        switches=("rsqrt_after_reduce",)),
    Row("R14", "fused head over one position in packed memory", "M3 Max", "Espresso", r14, "eval", reason=PITCH,
        switches=("row_pitch",)),
    Row("R15a", "softmax over 48 elements", "M3 Max", "hollance/neural-engine issue 44", r15a, "compile",
        switches=("softmax_power_of_2",)),
    Row("R15b", "slice_by_index of an input, RMSNorm, conv", "M3 Max", "hollance/neural-engine issue 44", r15b,
        "compile", switches=("sliced_input_norm",)),
    Row("R15c", "reduce_mean", "M3 Max", "hollance/neural-engine issue 44", r15c, "compile",
        switches=("reduce_mean",)),
    Row("R16", "GPT-2 attention of 256 positions", "M1 Ultra, 26", "Espresso issue 18", r16, "compile",
        switches=("reduce_mean",)),
    Row("R17", "conv of 32000 input channels", "M4", f"{MADERIX}, ANEgpt", r17, "compile", switches=("wide_input",)),
    Row("R18a", "axis of 16385", "M1", "ane-guide", r18a, "compile", chips=("m1", "m2", "m3"),
        reason="axis of 16385 elements"),
    Row("R18b", "rank 6", "M1", "ane-guide", r18b, "compile", reason="rank 6"),
    Row("R18c", "batched matmul of rank 5", "M1", "ane-guide", r18c, "compile", reason="rank 5"),
    Row("R18d", "axis of no elements", "M1", "ane-guide", r18d, "compile", reason="axis of 0 elements"),
    Row("R18e", "kernel width 16", "M1", "ane-guide", r18e, "compile", reason="kernel of width 16"),
    Row("R18f", "groups that do not divide the channels", "M1", "ane-guide", r18f, "parse",
        reason="do not fit 3 groups"),
    Row("R19a", "fp32 port; cast", "M5 Pro", SWEEP, r19a, "compile", switches=("fp32",)),
    Row("R19b", "ports of int32, int8, bool", "M5 Pro", SWEEP, r19b, "compile", reason="the engine's ports are fp16"),
    Row("R19c", "port of bf16", "M5 Pro", SWEEP, r19c, "parse", reason="expected an element type, but found 'bf16'"),
    Row("R19d", "26 operations, such as scatter, mod, sinh", "M5 Pro", SWEEP, each(WALLED), "compile",
        reason="does not exist on"),
    Row("R19e", "9 operations, such as gather, cumsum, reduce_argmax", "M5 Pro", SWEEP, each(SWEPT), "compile",
        switches=("swept_operations",), runs_if_allowed=False),
    Row("R20a", "while_loop, cond, list_*", "M5 Pro", SWEEP,
        each(CONTROL), "compile", reason="does not exist on|cannot be reached from MIL on"),
    Row("R20b", "identity", "M5 Pro", SWEEP, r20b, "compile", switches=("identity",)),
    Row("R20c", "argsort, read_state, reshape_like", "M5 Pro", SWEEP,
        each(("argsort", "read_state", "reshape_like")), "compile", switches=("swept_operations",),
        runs_if_allowed=False),
    Row("R21", "weights larger than the window", "M3 Max", "oMLX issues 2781 and 2874", r21, "load",
        reason="maps 4096"),
    Row("R24", "RoPE by slices of the last axis joined again", "M3 Ultra, M2 Max", "rustane issues 11 and 21", r24,
        "compile", switches=("last_axis_rope",)),
    Row("R25", "sqrt, then mul that broadcasts or real_div", "M1", "imperatormk", r25, "compile",
        switches=("sqrt_then_broadcast",)),
    Row("R26a", "layer_norm of 1024", "M1, M2", f"{ANEFORGE} issues 149 and 162", native_norm(1024), "compile",
        chips=("m1", "m2", "m3"), reason="rows of 1024"),
    Row("R26b", "layer_norm of 10240", "M5", f"{ANEFORGE} issue 162", native_norm(10240), "compile",
        reason="rows of 10240"),
)  # fmt: skip

#: Rows of the list that no program on the emulated engine can show, and where they belong.
ELSEWHERE = {
    "R9": ("weights nil, text that is no NSData", "arguments of Objective-C calls: the runtime of the real engine"),
    "R22": ("wrong symbol index of a procedure", "anew binds ports by name; the runtime of the real engine maps them"),
    "R23": ("weights overwritten and loaded again under the same identifier",
            "a cache of the system's compiler daemon: the runtime of the real engine makes a new identifier"),
    "R27": ("int4 blocks in Core AI fall back to the GPU", "a program for Core AI, which anew does not use"),
}  # fmt: skip
