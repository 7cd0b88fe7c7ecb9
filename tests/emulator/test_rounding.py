"""Rounding to fp16 against a plain float64 rendering of the rules, over every fp16 value and every tie."""

import math

import numpy as np
import pytest
import torch

from anew.device.emulator import rounding


def neighbourhood():
    """Float32: every finite fp16 value, every midpoint, what surrounds them, and values far out."""
    positive = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    middles = np.append((positive[:-1] + positive[1:]) / 2, [65520.0, 65536.0, 1e6, 3e38])
    points = np.concatenate([positive, middles]).astype(np.float32)
    outward, inward = np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))
    random = np.random.default_rng(0).integers(0, 0x7F800000, 100_000, dtype=np.uint32).view(np.float32)
    magnitudes = np.concatenate([points, outward, inward, random])
    return np.concatenate([magnitudes, -magnitudes])


def nearest(x):
    """Nearest fp16, ties away, unlimited range."""
    _, exponent = np.frexp(np.abs(x))
    unit = np.ldexp(1.0, np.maximum(exponent - 1, -14) - 10)
    whole = np.floor(np.abs(x) / unit)
    return np.copysign((whole + (np.abs(x) / unit - whole >= 0.5)) * unit, x)


def limited(x, largest):
    return np.where(np.abs(x) > largest, np.copysign(np.inf, x), x)


def elementwise(x):
    small = np.abs(x) < 2.0**-14
    return np.where(small, np.floor(np.where(small, x, 0) * 2.0**24) * 2.0**-24, limited(nearest(x), 65504))


def equal(result, expected):
    np.testing.assert_array_equal(result.numpy(), expected.astype(np.float32))


def test_elementwise_at_every_value_and_tie():
    x = neighbourhood()
    equal(rounding.round_elementwise_(torch.from_numpy(x.copy())), elementwise(x.astype(np.float64)))


def test_matmul_at_every_value_and_tie():
    x = neighbourhood()
    expected = limited(nearest(x.astype(np.float64)), 32752)
    equal(rounding.round_matmul_(torch.from_numpy(x.copy())), expected)


def test_float64_at_every_value_and_tie():
    x = neighbourhood().astype(np.float64)
    x = np.concatenate([x, np.nextafter(x, np.inf), np.nextafter(x, -np.inf)])  # where float32 would round twice
    equal(rounding.round_float64(torch.from_numpy(x)), limited(nearest(x), 65504))


def test_fixed_point_rounds_once():
    rng = np.random.default_rng(1)
    units = rng.integers(-(2**62), 2**62, 50_000) >> rng.integers(0, 62, 50_000)
    tie = np.int64(0b11111111111_1) << np.arange(0, 19)  # eleven ones and the bit of a half
    units = np.concatenate([units, tie - 1, tie, tie + 1, -tie - 1, -tie, -tie + 1])
    with np.errstate(invalid="ignore"):
        expected = limited(nearest(units.astype(np.float64) * 2.0**-16), 32752)
    equal(rounding.round_fixed_point(torch.from_numpy(units)), expected)


@pytest.mark.parametrize("function", [rounding.round_elementwise_, rounding.round_matmul_])
def test_infinities_stay_and_what_ieee_cannot_tell_is_zero(function):
    out = function(torch.tensor([math.nan, math.inf, -math.inf, -math.nan, 0.0, -0.0]))
    assert out[[0, 3]].tolist() == [0.0, 0.0]
    assert out[1:3].tolist() == [math.inf, -math.inf]
    assert out[4:].signbit().tolist() == [False, True]


def test_float64_keeps_infinities_and_has_no_nan():
    out = rounding.round_float64(torch.tensor([math.nan, math.inf, -math.inf], dtype=torch.float64))
    assert out.tolist() == [0.0, math.inf, -math.inf]


def test_named_limits():
    assert rounding.round_matmul_(torch.tensor([32752.0, 32759.9, 32760.0])).tolist() == [32752, 32752, math.inf]
    assert rounding.round_elementwise_(torch.tensor([65519.9, 65520.0])).tolist() == [65504, math.inf]
    assert rounding.round_elementwise_(torch.tensor([2048.0, 2049.0, -2049.0])).tolist() == [2048, 2050, -2050]


@pytest.mark.parametrize("size", [0, 1, 7, 1 << 17, (1 << 20) + 3])
def test_pieces_on_threads_cover_the_tensor(size):
    x = torch.full((size,), 2049.0)
    assert rounding.round_elementwise_(x) is x
    assert bool((x == 2050).all())
    assert rounding.absmax(x) == (2050 if size else 0)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_absmax_shows_what_is_not_finite(value):
    x = torch.randn(1000, 1000)
    x[-1, -1] = value
    assert rounding.absmax(x) == math.inf


def test_absmax_of_a_strided_tensor():
    x = torch.tensor([[1.0, -9.0], [2.0, 3.0]])
    assert rounding.absmax(x.T) == 9
    assert rounding.absmax(x[:, 0]) == 2


@pytest.mark.parametrize("x", [torch.zeros(4, 4).T[1:], torch.zeros(4, dtype=torch.float64)])
def test_other_layouts_and_dtypes_are_refused(x):
    with pytest.raises(ValueError, match="contiguous"):
        rounding.round_elementwise_(x)
