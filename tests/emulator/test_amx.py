"""Products on matrix tiles: what float32 products give, within its rounding, for every layout of the operands."""

import itertools
import math

import pytest
import torch

from anew.device.emulator import amx, tiles
from anew.device.emulator.fused import finish_product_
from anew.device.emulator.mac import matmul_finished

pytestmark = pytest.mark.skipif(not tiles.available(), reason="this processor has no tiles of bfloat16 (AMX)")

#: Rows, columns and terms; then the leading axes of both operands.
SHAPES = [
    (96, 96, 96, (), ()),
    (100, 130, 97, (), ()),
    (33, 500, 40, (2,), (2,)),
    (500, 37, 100, (3,), (3,)),
    (70, 64, 1100, (), ()),
    (40, 33, 50, (4,), ()),
    (40, 33, 50, (2, 1), (1, 3)),
]


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(amx, "SHORTEST", 1)


def operand(batch, rows, columns, transposed, half):
    x = torch.randn(*batch, columns, rows).mT if transposed else torch.randn(*batch, rows, columns)
    return x.half() if half else x.half().float()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("half", [False, True])
def test_products_round_as_float64_sums_do(shape, half):
    rows, columns, terms, batch, other = shape
    for transposed in itertools.product((False, True), repeat=2):
        a = operand(batch, rows, terms, transposed[0], half)
        b = operand(other, terms, columns, transposed[1], half)
        found, largest = amx.multiply(a, b)
        wanted = a.double() @ b.double()
        assert found.shape == wanted.shape
        slack = 1e-5 * (a.double().abs() @ b.double().abs())  # the terms are added in float32
        assert ((found - wanted).abs() <= wanted.abs() * 2.0**-11 + slack).all()
        assert largest == found.abs().max()


def test_each_product_of_two_numbers_is_exact():
    """One term other than zero in each sum: fp16 numbers of all sizes and signs, subnormal ones too."""
    a = torch.zeros(96, 96).fill_diagonal_(1.0)
    b = torch.ldexp(torch.randint(-2047, 2048, (96, 128)).float(), torch.randint(-24, 4, (96, 128)))
    b = torch.where(b.abs() < 2.0**-14, b.half().float(), b)
    assert torch.equal(b, b.half().float())
    b = torch.where(b.abs() < 32768, b, 1.0)
    for factor in (1.0, 0.5, 3.0, 2.0**-10):
        found, _ = amx.multiply(a * factor, b)
        wanted = b * factor
        finish_product_(wanted, None)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("factor", [None, 0.25, 3.0])
def test_scales_and_rounding_are_those_of_the_pass_after_a_float32_product(factor):
    a = torch.randint(-3, 4, (120, 100)).float()  # small integers: every sum is exact
    b = torch.randint(-3, 4, (100, 140)).float()
    found, largest = amx.multiply(a, b, 2.0**-4, factor)
    wanted = a @ b
    assert largest == finish_product_(wanted, factor, 2.0**-4)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("terms", [100, 1100])
def test_a_product_written_to_a_buffer_with_wide_rows(terms):
    a, b = torch.randn(100, terms).half(), torch.randn(terms, 130).half()
    buffer = torch.full((100, 160), 7.0, dtype=torch.float16)
    found, largest = amx.multiply(a, b, 1.0, None, buffer[:, :130])
    wanted, its = amx.multiply(a, b)
    assert found.data_ptr() == buffer.data_ptr()
    assert torch.equal(buffer[:, :130].float(), wanted)
    assert (buffer[:, 130:] == 7).all()
    assert largest == its


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("half", [False, True])
def test_operands_that_are_not_finite_are_left_to_float32(bad, side, half):
    a, b = torch.ones(100, 120), torch.ones(120, 100)
    (a, b)[side][50, 60] = bad
    a, b = (x.half() if half else x for x in (a, b))
    assert amx.multiply(a, b) is None
    found, largest = matmul_finished(a, b, 1.0, None)
    assert largest == math.inf or (math.isnan(bad) and not half)
    assert not found.isnan().any()


def test_small_matrices_are_left_to_float32(monkeypatch):
    monkeypatch.setattr(amx, "SHORTEST", 96)
    assert amx.multiply(torch.ones(95, 200), torch.ones(200, 200)) is None
    assert amx.multiply(torch.ones(96, 200), torch.ones(200, 200)) is not None


def test_the_tiles_of_others_are_left_as_they_were():
    """oneDNN keeps its tiles configured between two of its own products of bfloat16."""
    x, y = torch.randn(256, 256).bfloat16(), torch.randn(256, 256).bfloat16()
    before = x @ y
    amx.multiply(torch.randn(256, 256).half(), torch.randn(256, 256).half())
    assert torch.equal(x @ y, before)
