"""What goes into a leased buffer and out of it is torch's conversion, beside one multiplication in float32."""

import pytest
import torch

from anew.device.buffers import BufferPool
from anew.device.transfer import load, measure, store


@pytest.mark.parametrize("shape", [(), (5,), (3, 40), (1, 1), (4, 64, 48), (70000,), (2, 3, 100, 100)])
@pytest.mark.parametrize("exponent", [0, 7, -20])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_buffer_takes_and_gives_what_torch_converts(shape, exponent, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * 2.0 ** torch.randint(-20, 18, shape, generator=generator)
    x = x.mT if x.dim() > 1 and shape[-1] == shape[-2] else x
    buffer = BufferPool(row_bytes=64).lease(shape)
    assert store(buffer, x, exponent) == x.abs().max()
    assert torch.equal(buffer, (x * 2.0**exponent).half())
    found, largest = load(buffer, -exponent)
    measured, squares = measure(buffer)
    torch.set_num_threads(before)
    assert largest == measured == buffer.float().abs().max()
    assert squares == pytest.approx(float(buffer.double().square().sum()), rel=1e-12)
    assert found.is_contiguous()
    assert torch.equal(found, buffer.float() * 2.0**-exponent)


def test_what_is_not_finite_stays_so():
    buffer = BufferPool(row_bytes=64).lease((2, 3))
    x = torch.tensor([[torch.inf, -torch.inf, torch.nan], [1e9, -1e9, -0.0]])
    assert store(buffer, x, 0) == torch.inf
    found, largest = load(buffer, 0)
    assert found[0, 2].isnan()
    assert torch.equal(found.nan_to_num(7.0), x.half().float().nan_to_num(7.0))
    assert largest == measure(buffer)[0] == torch.inf


def test_what_lies_between_the_rows_of_a_buffer_is_not_measured():
    buffer = BufferPool(row_bytes=64).lease((3, 20))
    buffer.as_strided((3, 32), (32, 1)).fill_(torch.inf)
    buffer.fill_(-2.0)
    assert load(buffer, 0)[1] == 2.0
    assert measure(buffer) == (2.0, 240.0)


def test_the_sum_of_squares_is_the_same_on_any_number_of_threads():
    buffer = BufferPool(row_bytes=64).lease((300, 101))
    buffer.normal_(generator=torch.Generator().manual_seed(1))
    before, sums = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        sums.append(measure(buffer)[1])
    torch.set_num_threads(before)
    assert sums[0] == sums[1]
