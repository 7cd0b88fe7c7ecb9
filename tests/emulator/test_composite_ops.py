"""Operations that stand for several: the emulated engine computes them as it does the several, bit for bit."""

import math

import numpy as np
import pytest
import torch

from anew.device.emulator.executor import Executable
from anew.device.emulator.kernels import Arithmetic
from anew.mil import Builder


def run(program, exact, **inputs):
    function = program.main
    outputs = {v.name: torch.empty(v.shape) for v in function.outputs}
    Executable(function, Arithmetic(exact=exact, winograd=False, slice_limit=math.inf)).run(inputs | outputs)
    return list(outputs.values())


def random(*shape, scale=1.0):
    return np.random.default_rng(sum(shape)).normal(0, scale, shape).astype(np.float16)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("scale", [1, 60])  # with the larger one some sums leave the range of the array
def test_linear_is_a_product_and_a_sum(exact, scale):
    b = Builder()
    x = b.input("x", (3, 5, 64))
    weight, bias = random(7, 64, scale=scale), random(7)
    one = b.op("linear", x=x, weight=b.array(weight), bias=b.array(bias))
    product = b.op("matmul", x=x, y=b.array(weight), transpose_x=False, transpose_y=True)
    two = b.op("add", x=product, y=b.array(bias))
    one, two = run(b.program([one, two]), exact, x=torch.from_numpy(random(3, 5, 64, scale=scale)))
    assert one.isinf().any() == (scale == 60)
    torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("mask", ["none", "fp16", "bool"])
def test_attention_is_two_products_and_a_softmax(exact, mask):
    b = Builder()
    q, k, v = (b.input(name, (2, 6, 16)) for name in "qkv")
    seen = np.tril(np.ones((6, 6), bool))
    masks = {"none": None, "fp16": b.array(np.where(seen, 0, -1e4)), "bool": b.array(seen, "seen", "bool")}
    one = b.op("scaled_dot_product_attention", query=q, key=k, value=v, attn_mask=masks[mask])
    scores = b.op("matmul", x=q, y=k, transpose_x=False, transpose_y=True)
    scores = b.op("mul", x=scores, y=0.25)
    if mask != "none":
        scores = b.op("add", x=scores, y=masks["fp16"])
    weights = b.op("softmax", x=scores, axis=-1)
    two = b.op("matmul", x=weights, y=v, transpose_x=False, transpose_y=False)
    inputs = {name: torch.from_numpy(random(2, 6, 16) * (i + 1)) for i, name in enumerate("qkv")}
    one, two = run(b.program([one, two]), exact, **inputs)
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_casts_round():
    b = Builder()
    x = b.input("x", (4,), "fp32")
    half = b.op("cast", x=x, dtype="fp16")
    whole = b.op("cast", x=b.op("cast", x=x, dtype="int32"), dtype="fp16")
    half, whole = run(b.program([half, whole]), True, x=torch.tensor([1 + 2**-12, 1e6, -2.75, 2.75]))
    assert half.tolist() == [1, torch.inf, -2.75, 2.75]
    assert whole.tolist()[2:] == [-2, 2]


def test_results_of_split_are_read_and_returned():
    b = Builder()
    x = b.input("x", (2, 6))
    left, middle, right = b.results("split", x=x, split_sizes=(1, 3, 2), axis=1)
    joined = b.op("concat", values=(right, middle, left), axis=1, interleave=False)
    numbers = torch.arange(12.0).view(2, 6)
    joined, middle = run(b.program([joined, middle]), True, x=numbers)
    assert torch.equal(middle, numbers[:, 1:4])
    assert torch.equal(joined, numbers[:, [4, 5, 1, 2, 3, 0]])
