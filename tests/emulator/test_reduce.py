"""The narrow accumulation of sums."""

import math

import pytest
import torch

from anew.device.emulator.reduce import narrow_sum
from anew.device.emulator.rounding import round_elementwise_


@pytest.mark.parametrize("total", [1, 31, 33, 1000, 1025, 2047, 2048])
def test_integer_totals_are_exact_up_to_2048(total):
    assert narrow_sum(torch.ones(total), [0], False).item() == total


def test_2049_becomes_2050():
    assert narrow_sum(torch.ones(2049), [0], False).item() == 2050


def test_error_matches_the_figures():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8192, 4096, generator=generator)
    reference = x.double().sum(1)
    error = (narrow_sum(x.half().float(), [1], False).double() - reference).norm() / reference.norm()
    for published in (8.07e-4, 8.09e-4, 8.13e-4):  # M4 and later, M1 and M2 (2048 rows), M1 and M2 (8192 rows)
        assert error.item() == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("dims", [[0], [1], [2], [-1], [0, 2], [2, 0], [1, -1], [0, 1, 2]])
def test_axes(dims, keepdim):
    x = torch.randint(-3, 4, (5, 40, 33), generator=torch.Generator().manual_seed(1)).float()
    result = narrow_sum(x.mT.contiguous().mT, dims, keepdim)
    expected = x.sum(dims, keepdim=keepdim)
    assert result.shape == expected.shape
    assert result.is_contiguous()
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_no_axis_and_a_scalar_leave_the_values():
    x = torch.tensor([[1.0, 2.0]])
    assert narrow_sum(x, [], False).tolist() == [[1, 2]]
    assert narrow_sum(x, [0], False).tolist() == [1, 2]


def test_partial_sums_overflow():
    x = torch.full((64,), 60000.0)
    x[32:] = -60000.0
    assert narrow_sum(x, [0], False).item() == 0  # infinity less infinity
    assert narrow_sum(x.abs(), [0], False).item() == math.inf


def test_the_operand_is_left_alone():
    x = torch.full((3, 1), 1 + 2.0**-12)  # off the grid, so that rounding in place would show
    narrow_sum(x, [1], False)
    assert (x == 1 + 2.0**-12).all()


def test_axis_out_of_range():
    with pytest.raises(IndexError, match="axis 2"):
        narrow_sum(torch.ones(2, 2), [2], False)


@pytest.mark.parametrize("length", [1, 5, 32, 33, 64, 200, 288, 1024, 1025, 5000])
def test_the_sum_is_the_one_described(length):
    """Rounded partial sums of 32 neighbours, taken in turn by up to 32 lanes, which a tree adds."""
    x = torch.randint(-2000, 2000, (3, length), generator=torch.Generator().manual_seed(length)) / 256.0  # exact sums
    for row, found in zip(x, narrow_sum(x, [1], False), strict=True):
        parts = [part.sum() for part in row.split(32)]
        lanes = [torch.zeros(())] * min(32, 2 ** math.ceil(math.log2(len(parts))))
        for i, part in enumerate(parts):
            lanes[i % len(lanes)] = round_elementwise_(lanes[i % len(lanes)] + part)
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [round_elementwise_(a + b) for a, b in zip(lanes[:half], lanes[half:], strict=True)]
        assert found == lanes[0]
