"""What goes into a leased buffer and out of it is torch's conversion, beside one multiplication in float32."""

import pytest
import torch

from anew.device.buffers import BufferPool
from anew.device.transfer import load, store


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
    found = load(buffer, -exponent)
    torch.set_num_threads(before)
    assert found.is_contiguous()
    assert torch.equal(found, buffer.float() * 2.0**-exponent)


def test_what_is_not_finite_stays_so():
    buffer = BufferPool(row_bytes=64).lease((2, 3))
    x = torch.tensor([[torch.inf, -torch.inf, torch.nan], [1e9, -1e9, -0.0]])
    assert store(buffer, x, 0) == torch.inf
    assert load(buffer, 0)[0, 2].isnan()
    assert torch.equal(load(buffer, 0).nan_to_num(7.0), x.half().float().nan_to_num(7.0))
