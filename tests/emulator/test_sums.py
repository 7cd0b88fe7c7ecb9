"""Float32 sums by oneDNN: those of float64 within float32's rounding, for every layout of the operands."""

import itertools

import pytest
import torch

from anew.device.emulator import sums

#: Rows, columns and terms; then the leading axes of the left operand. All large enough for oneDNN.
SHAPES = [(128, 96, 100, ()), (1, 2000, 700, ()), (300, 5, 900, ()), (50, 130, 60, (2, 3))]


@pytest.mark.skipif(not sums.available(), reason="this build of PyTorch, or this processor, has no oneDNN for AVX-512")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_are_those_of_float64_for_every_layout(shape):
    rows, columns, terms, batch = shape
    for left_turned, right_turned in itertools.product((False, True), repeat=2):
        a = torch.randn(*batch, terms, rows).mT if left_turned else torch.randn(*batch, rows, terms)
        b = torch.randn(columns, terms).mT if right_turned else torch.randn(terms, columns)
        assert a.numel() * columns >= sums.FEWEST
        found, wanted = sums.float32_matmul(a, b), a.double() @ b.double()
        assert found.shape == wanted.shape
        assert ((found - wanted).abs() <= 1e-6 * (a.double().abs() @ b.double().abs())).all()


@pytest.mark.parametrize("left", [(3, 4), (2, 3, 4), (4,), (0, 4)], ids=str)
def test_what_is_small_or_no_single_product_is_torch_s(left):
    a, b = torch.randn(left), torch.randn(*left[:-2], 4, 5)
    assert torch.equal(sums.float32_matmul(a, b), a @ b)


@pytest.mark.skipif(not sums.available(), reason="this build of PyTorch, or this processor, has no oneDNN for AVX-512")
def test_values_that_are_not_finite_stay_so():
    a, b = torch.zeros(128, 128), torch.ones(128, 128)
    a[0, 0], a[1, 1], a[2, 2] = torch.inf, -torch.inf, torch.nan
    found = sums.float32_matmul(a, b)
    assert (found[0] == torch.inf).all()
    assert (found[1] == -torch.inf).all()
    assert found[2].isnan().all()
    assert (found[3:] == 0).all()


def test_operands_of_fp16_are_widened_and_do_not_disturb_each_other():
    a, b = torch.randn(40, 30).half(), torch.randn(30, 50).half()
    first = sums.float32_matmul(a, b)
    second = sums.float32_matmul(b.mT[:20], a.mT[:, :10])
    assert torch.allclose(first, a.float() @ b.float(), atol=1e-5)
    assert torch.allclose(second, b.mT[:20].float() @ a.mT[:, :10].float(), atol=1e-5)
