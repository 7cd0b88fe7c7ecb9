"""MIL in the manner of each project that writes it by hand or with a tool of its own: it parses, prints and computes.

The texts (``tests/golden/third_party``) are written for these tests. Each case gives the weight files that its text
names, and the same computation in PyTorch at double precision.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from anew.chips import load_chip
from anew.device.emulator.engine import EmulatedEngine
from anew.device.emulator.executor import Executable
from anew.device.emulator.kernels import Arithmetic
from anew.device.null import NullDevice
from anew.mil import BlobWriter, MilError, parse_program, print_program

TEXTS = Path(__file__).parent.parent / "golden" / "third_party"


def numbers(seed, *shape, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float16)


def codes(seed, dtype, low, high, *shape):
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def blob(*arrays):
    writer = BlobWriter()
    for element, array in arrays:
        writer.add(array, element)
    return writer.to_bytes()


def files(**arrays):
    """A file for each array, as the projects that write one file a weight have it."""
    return {f"@model_path/weights/{name}.bin": blob(("fp16", array)) for name, array in arrays.items()}


def double(array):
    return torch.from_numpy(np.asarray(array)).double()


def norm(x, weight, epsilon):
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + epsilon) * double(weight)


# ---- one case a text: weights, and its outputs from its inputs

ATTENTION = {f"w{n}": numbers(i, 8, 8, 1, 1, scale=0.5) for i, n in enumerate("qkvo")}
ATTENTION |= {"rms1": numbers(7, 1, 8, 1, 1), "mask": np.triu(np.full((1, 1, 4, 4), -65504, np.float16), 1)}


def attention(x):
    xn = norm(x, ATTENTION["rms1"], 1e-5)
    q, k, v = (F.conv2d(xn, double(ATTENTION[f"w{n}"])).view(1, 2, 4, 4).mT for n in "qkv")
    af = F.scaled_dot_product_attention(q, k, v, is_causal=True).mT.reshape(1, 8, 1, 4)
    return {"out": torch.cat([F.conv2d(af, double(ATTENTION["wo"])), af, xn], 1)}


INT8 = [codes(n, np.int8, -128, 128, 8, 8, 1, 1) for n in range(2)]


def quantized(x):
    h = F.conv2d(x, double(INT8[0]) / 128).half().double()  # else some land on the other side of a half
    h = (h * 8).round().clamp(-128, 127) / 8
    scales = double([1, 1, 2, 1, 1, 1.5, 1, 0.5]).view(8, 1, 1, 1) / 128
    return {"y": F.conv2d(h, double(INT8[1]) * scales)}


def packed(x):
    return {"y": (x[:, :, 0, :4].mT @ x[:, :, 0, 4:]).mT.unsqueeze(2)}


MLP = {"ln_g": numbers(1, 1, 8, 1, 1), "ln_b": numbers(2, 1, 8, 1, 1)}
MLP |= {"fc_w": numbers(3, 16, 8, 1, 1, scale=0.5), "fc_b": numbers(4, 1, 16, 1, 1)}


def mlp(x):
    h = F.layer_norm(x.movedim(1, -1), (8,), double(MLP["ln_g"]).flatten(), double(MLP["ln_b"]).flatten(), 1e-5)
    h = F.conv2d(h.movedim(-1, 1), double(MLP["fc_w"])) + double(MLP["fc_b"])
    low, high = F.gelu(h, approximate="tanh").chunk(2, 1)
    return {"lo32": low, "hi32": high}


FFN = {"rms2": numbers(1, 1, 8, 1, 1), "w2": numbers(4, 8, 16, 1, 1, scale=0.5)}
FFN |= {"w1": numbers(2, 16, 8, 1, 1, scale=0.5), "w3": numbers(3, 16, 8, 1, 1, scale=0.5)}


def gated(x):
    xn = norm(x / 4, FFN["rms2"], 1e-6)
    h = F.silu(F.conv2d(xn, double(FFN["w1"]))) * F.conv2d(xn, double(FFN["w3"]))
    return {"out": x + F.conv2d(h, double(FFN["w2"]))}


PALETTE = {"gamma": numbers(1, 8), "beta": numbers(2, 8), "bias": numbers(3, 32), "lut": numbers(5, 16, scale=0.5)}
PALETTE_CODES = codes(4, np.uint8, 0, 16, 32, 8)


def palettized(hidden):
    h = F.layer_norm(hidden, (8,), double(PALETTE["gamma"]), double(PALETTE["beta"]), 1e-5)
    h = F.linear(h, double(PALETTE["lut"][PALETTE_CODES]), double(PALETTE["bias"]))
    a, b = h.split(16, -1)
    return {"output": (a * F.gelu(b))[..., 8:]}


ROW_CODES, ROW_LUT = codes(1, np.uint8, 0, 16, 8, 4), numbers(2, 8, 1, 16, 1)


def inline(q, kv):
    weight = double(np.take_along_axis(ROW_LUT[:, 0, :, 0], ROW_CODES, 1))
    p = F.scaled_dot_product_attention(q, *kv.split(8, -1), is_causal=True) @ weight
    return {"y": torch.stack([p, p.clamp(-2, 1.5)], -1).flatten(-2)}


ONE_FILE = "@model_path/weights/weight.bin"
CASES = {
    "maderix_attention": (files(**ATTENTION), attention),
    "maderix_int8": (blob(*(("int8", w) for w in INT8)), quantized),
    "maderix_dynamic": ({}, packed),
    "orion_mlp": (files(**MLP), mlp),
    "espresso_ffn": (files(**FFN), gated),
    "coremlc_ios16": (
        {
            ONE_FILE: blob(
                ("fp16", PALETTE["gamma"]),
                ("fp16", PALETTE["beta"]),
                ("uint8", PALETTE_CODES.ravel()[::2] | PALETTE_CODES.ravel()[1::2] << 4),
                ("fp16", PALETTE["lut"]),
                ("fp16", PALETTE["bias"]),
            )
        },
        palettized,
    ),
    "aneforge_inline": (blob(("uint4", ROW_CODES), ("fp16", ROW_LUT)), inline),
}

BANK = [(codes(n, np.int8, -128, 128, o, 8, 1, 1), np.abs(numbers(n, o, 1, 1, 1)) / 64) for n, o in enumerate((8, 16))]
BANK_FILE = blob(*(pair for data, scale in BANK for pair in (("int8", data), ("fp16", scale))))


def test_every_text_has_a_case():
    assert {p.stem for p in TEXTS.glob("*.mil")} == {*CASES, "omlx_bank"}


def text_of(name):
    return (TEXTS / f"{name}.mil").read_text()


def run(function):
    """Random inputs on the fp16 grid, and what the emulated engine makes of them; ports may be fp32 here."""
    torch.manual_seed(0)
    dtype = {"fp16": torch.float16, "fp32": torch.float32}
    inputs = {v.name: torch.randn(v.shape).half() for v in function.inputs}
    outputs = {v.name: torch.empty(v.shape, dtype=dtype[v.type.dtype]) for v in function.outputs}
    Executable(function, Arithmetic(exact=True, winograd=False, slice_limit=math.inf)).run(inputs | outputs)
    return inputs, outputs


def assert_close(outputs, expected):
    assert outputs.keys() == expected.keys()
    for name, reference in expected.items():
        error = (outputs[name].double() - reference).norm() / reference.norm()
        assert error < 4e-3, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("name", CASES)
def test_computes(name):
    weights, reference = CASES[name]
    function = parse_program(text_of(name), weights).main
    inputs, outputs = run(function)
    assert_close(outputs, reference(**{n: x.double() for n, x in inputs.items()}))


@pytest.mark.parametrize("name", CASES)
def test_prints_and_parses_back(name):
    weights, reference = CASES[name]
    printed = print_program(parse_program(text_of(name), weights))
    program = parse_program(*printed)
    assert print_program(program) == printed
    inputs, outputs = run(program.main)
    assert_close(outputs, reference(**{n: x.double() for n, x in inputs.items()}))


@pytest.mark.parametrize("number", [0, 1])
def test_a_bank_of_procedures(number):
    """Each function is a program of its own on the device, with its own weights and ports."""
    data, scale = BANK[number]
    program = EmulatedEngine(load_chip("m4")).compile(text_of("omlx_bank"), BANK_FILE, f"procedure{number:03d}")
    assert [p.type.shape for p in program.outputs] == [(1, len(data), 1, 32)]
    x, y = torch.randn(1, 8, 1, 32).half(), torch.empty(1, len(data), 1, 32).half()
    operation = program.operation()
    operation.bind({"x": x, "y": y})
    operation.execute()
    weight = double((data * scale).astype(np.float16))
    assert_close({"y": y}, {"y": F.conv2d(x.double(), weight)})


@pytest.mark.parametrize("device", [EmulatedEngine, NullDevice])
def test_which_function_of_a_bank_must_be_said(device):
    engine = device(load_chip("m4"))
    text = text_of("omlx_bank")
    with pytest.raises(MilError, match="no function 'main'; it has procedure000, procedure001"):
        engine.compile(text, BANK_FILE)
    with pytest.raises(MilError, match="no function 'procedure002'"):
        engine.compile(text, BANK_FILE, "procedure002")
    only = text[: text.index("  func procedure001")] + "}\n"
    assert [p.name for p in engine.compile(only, BANK_FILE).outputs] == ["y"]


def test_weights_of_several_files_are_given_by_path():
    text, (weights, _) = text_of("espresso_ffn"), CASES["espresso_ffn"]
    path = "@model_path/weights/w3.bin"
    with pytest.raises(MilError, match=rf"line \d+, column \d+: the weights have no file '{path}'; they have "):
        parse_program(text, {p: data for p, data in weights.items() if p != path})
    with pytest.raises(MilError, match=r"weights lie in two files, .*rms2.bin' and .*w1.bin'; give them by path"):
        parse_program(text, weights["@model_path/weights/rms2.bin"])


def test_the_mask_counts():
    """The result is another without it, so that the case above shows that it is read."""
    weights, _ = CASES["maderix_attention"]
    unmasked = weights | files(mask=np.zeros((1, 1, 4, 4), np.float16))
    _, masked = run(parse_program(text_of("maderix_attention"), weights).main)
    _, other = run(parse_program(text_of("maderix_attention"), unmasked).main)
    assert not math.isclose(float(masked["out"][0, 0, 0, 0]), float(other["out"][0, 0, 0, 0]), rel_tol=1e-2)
