"""The multiply-accumulate against an int64 rendering of its rules, over arbitrary fp16 bit patterns."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from anew.device.emulator.conv import conv2d
from anew.device.emulator.mac import fixed_point_sums, matmul_exact, matmul_fast
from anew.device.emulator.rounding import round_fixed_point, round_matmul_

# Ranges of fp16 bit patterns: any finite value, near the flush threshold, subnormal, near the top, few bits.
RANGES = {"any": (0, 0x7C00), "flush": (0x0C00, 0x2400), "subnormal": (0, 0x0400), "top": (0x6000, 0x7C00)}


def patterns(rng, kind, shape):
    """Random fp16 bit patterns, a tenth of them zero."""
    bits = rng.integers(*RANGES[kind], shape, dtype=np.uint16) | rng.integers(0, 2, shape, dtype=np.uint16) << 15
    bits[rng.random(shape) < 0.1] = 0
    return torch.from_numpy(bits.view(np.float16).astype(np.float32))


def literal_sums(a, b):
    """The rules word for word for a [M, K] and b [K, N]: int64 [M, N]."""
    a, b = a.double().numpy()[:, :, None], b.double().numpy()[None]
    ea, eb = (np.maximum(np.frexp(v)[1] - 1, -14) for v in (a, b))
    units = a * b * 65536
    products = np.copysign(np.floor(np.abs(units) + 0.5), units).astype(np.int64)
    return torch.from_numpy(np.where(ea + eb < -16, 0, products).sum(axis=1))


def same(result, expected):
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    m=st.integers(1, 40),
    k=st.integers(0, 70),
    n=st.integers(1, 40),
    left=st.sampled_from(sorted(RANGES)),
    right=st.sampled_from(sorted(RANGES)),
    transposed=st.booleans(),
)
def test_any_bit_pattern(seed, m, k, n, left, right, transposed):
    rng = np.random.default_rng(seed)
    a, b = patterns(rng, left, (m, k)), patterns(rng, right, (k, n))
    given_b = b.T.contiguous().T if transposed else b
    expected = literal_sums(a, b)
    same(fixed_point_sums(a, given_b), expected)
    same(matmul_exact(a, given_b), round_fixed_point(expected))


@pytest.mark.parametrize("shape", [(300, 600, 300), (1, 1000, 520), (520, 1000, 1), (3, 257, 259), (130, 513, 17)])
@pytest.mark.parametrize("scale", [0.02, 1.0, 60.0])
def test_more_than_a_block(shape, scale):
    m, k, n = shape
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(m, k, generator=generator).mul(scale).half().float()
    b = torch.randn(k, n, generator=generator).half().float()
    expected = torch.cat([literal_sums(row[None], b) for row in a])
    same(fixed_point_sums(a, b), expected)
    same(matmul_exact(a, b), round_fixed_point(expected))
    same(matmul_exact(a, b.T.contiguous().T), round_fixed_point(expected))


def test_every_tie_goes_away_from_zero():
    odd = torch.arange(3, 2048, 2, dtype=torch.float32)  # 2^-17 itself is flushed
    a, b = odd * 2.0**-9, torch.tensor([2.0**-8, -(2.0**-8)])
    expected = torch.stack([(odd + 1) / 2, -(odd + 1) / 2], dim=1).long()
    same(fixed_point_sums(a[:, None], b[None]), expected)
    same(fixed_point_sums(b[:, None], a[None]), expected.T)


@pytest.mark.parametrize(("x", "w", "units"), [(-8, -9, 0), (-8, -8, 1), (-14, -2, 1), (-14, -3, 0), (-24, -2, 0)])
def test_flush_of_powers_of_two(x, w, units):
    same(fixed_point_sums(torch.tensor([[2.0**x]]), torch.tensor([[2.0**w]])), torch.tensor([[units]]))


def test_subnormal_operands_take_part():
    same(matmul_exact(torch.tensor([[2.0**-20]]), torch.tensor([[16.0]])), torch.tensor([[2.0**-16]]))
    # E of a subnormal is -14 and so 2^-16 * 2^-1 * 1.5 is not flushed but rounded up to 2^-16
    same(matmul_exact(torch.tensor([[2.0**-16]]), torch.tensor([[0.75]])), torch.tensor([[2.0**-16]]))


def test_sums_are_exact_and_do_not_depend_on_order():
    a = torch.full((1, 16384), 1.0)
    assert matmul_exact(a, torch.ones(16384, 1)).item() == 16384
    a = torch.tensor([[60000.0, 2.0**-8, -60000.0]])
    assert matmul_exact(a, torch.tensor([[60000.0], [2.0**-8], [60000.0]])).item() == 2.0**-16


@pytest.mark.parametrize("k", [511, 512, 513, 5000])
@pytest.mark.parametrize("peak", [63.96875, 64.0, 65504.0])
def test_largest_products_of_every_path(k, peak):
    a, b = torch.full((2, k), peak), torch.ones(k, 3)
    same(fixed_point_sums(a, b), torch.full((2, 3), int(k * peak * 65536)))
    same(fixed_point_sums(-a, b), torch.full((2, 3), -int(k * peak * 65536)))


def test_extreme_sum_of_squares():
    a = torch.full((1, 32767), 65504.0)
    same(fixed_point_sums(a, a.T), torch.tensor([[32767 * 65504 * 65504 * 65536]]))


def test_cliff():
    a = torch.tensor([[32752.0, 0.0], [32752.0, 7.9375], [32752.0, 8.0], [-32752.0, -8.0]])
    expected = [32752, 32752, math.inf, -math.inf]
    assert matmul_exact(a, torch.ones(2, 1)).flatten().tolist() == expected
    assert matmul_fast(a, torch.ones(2, 1)).flatten().tolist() == expected


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((5, 7), (3, 7, 4)),
        ((3, 5, 7), (7, 4)),
        ((2, 1, 5, 7), (3, 7, 4)),
        ((2, 3, 40, 7), (2, 3, 7, 9)),
        ((2, 3, 9, 7), (2, 3, 7, 40)),
    ],
)
def test_batches_broadcast_as_in_torch(left, right):
    rng = np.random.default_rng(2)
    a, b = patterns(rng, "flush", left), patterns(rng, "any", right)
    batch = torch.broadcast_shapes(left[:-2], right[:-2])
    pairs = zip(a.expand(*batch, *left[-2:]).flatten(0, -3), b.expand(*batch, *right[-2:]).flatten(0, -3), strict=True)
    expected = torch.stack([literal_sums(x, y) for x, y in pairs]).view(*batch, left[-2], right[-1])
    result = matmul_exact(a, b)
    assert result.is_contiguous()
    same(result, round_fixed_point(expected))


def test_strides():
    rng = np.random.default_rng(3)
    a, b = patterns(rng, "any", (33, 5, 18)), patterns(rng, "flush", (5, 18, 70))
    plain = matmul_exact(a.transpose(0, 1).contiguous(), b[..., ::2].contiguous())
    same(matmul_exact(a.transpose(0, 1), b[..., ::2]), plain)
    same(matmul_exact(a.permute(1, 2, 0).mT, b.mT[:, ::2].mT), plain)


@pytest.mark.parametrize(("m", "k", "n"), [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)])
def test_empty(m, k, n):
    same(matmul_exact(torch.ones(2, m, k), torch.ones(2, k, n)), torch.zeros(2, m, n))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_touches_its_row_or_column_alone(value):
    rng = np.random.default_rng(4)
    a, b = patterns(rng, "flush", (6, 8)), patterns(rng, "flush", (8, 5))
    clean = matmul_exact(a, b)
    a[2, 3] = value
    b[1, 4] = value
    result, ieee = matmul_exact(a, b), round_matmul_(a @ b)
    same(result[2], ieee[2])
    same(result[:, 4], ieee[:, 4])
    rows = [0, 1, 3, 4, 5]
    same(result[rows, :4], clean[rows, :4])


def test_operands_are_checked():
    with pytest.raises(ValueError, match="contraction"):
        matmul_exact(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="float32"):
        matmul_exact(torch.ones(2, 3).half(), torch.ones(3, 2))
    with pytest.raises(ValueError, match="two or more axes"):
        matmul_exact(torch.ones(3), torch.ones(3, 2))


def test_fast_is_rounded_float32():
    a, b = torch.randn(20, 30).half().float(), torch.randn(30, 10).half().float()
    same(matmul_fast(a, b), round_matmul_(a @ b))


CONVOLUTIONS = [
    {"strides": (1, 1), "pad": (1, 1, 1, 1), "dilations": (1, 1), "groups": 1},
    {"strides": (2, 1), "pad": (0, 2, 1, 0), "dilations": (1, 2), "groups": 1},
    {"strides": (1, 2), "pad": (0, 0, 0, 0), "dilations": (1, 1), "groups": 2},
    {"strides": (1, 1), "pad": (2, 1, 0, 3), "dilations": (2, 1), "groups": 4},
]


@pytest.mark.parametrize("form", CONVOLUTIONS)
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("winograd", [True, False])
def test_convolution_is_what_it_should_be_for_integers(form, exact, winograd):
    # Small even integers are exact in every form, Winograd included.
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-4, 5, (2, 4, 8, 10), generator=generator).float()
    w = torch.randint(-4, 5, (8, 4 // form["groups"], 3, 3), generator=generator).float() * 2
    top, bottom, left, right = form["pad"]
    padded = F.pad(x, (left, right, top, bottom))
    expected = F.conv2d(padded, w, None, form["strides"], 0, form["dilations"], form["groups"])
    same(conv2d(x, w, **form, exact=exact, winograd=winograd), expected)


def test_winograd_only_where_it_applies():
    x, w = torch.randn(1, 3, 6, 8).half().float(), torch.randn(5, 3, 3, 3).half().float()
    differs = conv2d(x, w, winograd=True) != conv2d(x, w, winograd=False)
    assert differs.any()
    odd = x[..., :7]
    same(conv2d(odd, w, winograd=True), conv2d(odd, w, winograd=False))
    same(conv2d(x, w, strides=(1, 2), winograd=True), conv2d(x, w, strides=(1, 2), winograd=False))


def test_direct_convolution_is_the_product_of_its_patches():
    x, w = torch.randn(2, 3, 6, 7).half().float(), torch.randn(5, 3, 2, 3).half().float()
    expected = matmul_exact(w.reshape(5, -1), F.unfold(x, (2, 3))).view(2, 5, 5, 5)
    same(conv2d(x, w), expected)
