"""Leased buffers: layout, and that memory with a living user is never handed out again."""

import gc
import threading
from itertools import pairwise

import pytest
import torch

from anew.device.buffers import BufferPool


@pytest.fixture
def pool():
    return BufferPool(64)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((5,), (1,)),
        ((3, 32), (32, 1)),
        ((3, 33), (64, 1)),
        ((3, 1), (32, 1)),
        ((2, 3, 40), (192, 64, 1)),
        ((4, 1, 2, 7), (64, 64, 32, 1)),
        ((2, 3, 4, 5, 65), (3 * 4 * 5 * 96, 4 * 5 * 96, 5 * 96, 96, 1)),
    ],
)
def test_rows_start_at_multiples_of_64_bytes(pool, shape, strides):
    buffer = pool.lease(shape)
    assert buffer.dtype == torch.float16
    assert buffer.shape == shape
    assert buffer.stride() == pool.strides(shape) == strides
    rows = buffer.flatten(0, -2) if buffer.dim() > 1 else buffer[None]
    assert all(rows[i].data_ptr() % 64 == 0 for i in range(len(rows)))


def test_every_element_can_be_written(pool):
    buffer = pool.lease((2, 3, 33))
    values = torch.arange(198.0).view(2, 3, 33)
    buffer.copy_(values)
    assert torch.equal(buffer.float(), values)
    assert buffer.untyped_storage().nbytes() >= 2 * 3 * 64 * 2


def test_memory_is_used_again(pool):
    address = pool.lease((4, 40)).data_ptr()
    assert pool.lease((4, 64)).data_ptr() == address  # the same size once rows are padded
    assert pool.allocated_bytes == 4 * 64 * 2
    first, second = pool.lease((4, 40)), pool.lease((4, 40))
    assert first.data_ptr() != second.data_ptr()
    assert pool.allocated_bytes == 2 * 4 * 64 * 2


@pytest.mark.parametrize("derive", [lambda b: b[1:], lambda b: b.view(-1), lambda b: b.detach(), lambda b: b.mT])
def test_a_view_keeps_the_lease(pool, derive):
    buffer = pool.lease((2, 64))
    view, address = derive(buffer), buffer.data_ptr()
    del buffer
    assert pool.lease((2, 64)).data_ptr() != address
    del view
    assert address in {x.data_ptr() for x in [pool.lease((2, 64)) for _ in range(2)]}


def test_autograd_keeps_the_lease(pool):
    buffer = pool.lease((2, 64)).fill_(3.0)
    address = buffer.data_ptr()
    weight = torch.ones(2, 64, dtype=torch.float16, requires_grad=True)
    loss = (buffer * weight).sum()
    del buffer
    others = [pool.lease((2, 64)).fill_(7.0) for _ in range(3)]
    assert address not in {x.data_ptr() for x in others}
    loss.backward()
    assert torch.equal(weight.grad, torch.full((2, 64), 3.0, dtype=torch.float16))
    del loss
    gc.collect()
    assert pool.lease((2, 64)).data_ptr() == address


def test_no_two_threads_hold_the_same_memory(pool):
    wrong = []

    def work(number):
        for _ in range(300):
            held = [pool.lease((4, 32)).fill_(number) for _ in range(3)]
            spans = sorted(x.data_ptr() for x in held)
            if any(b - a < 4 * 32 * 2 for a, b in pairwise(spans)) or any((x != number).any() for x in held):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert pool.allocated_bytes <= 4 * 6 * 4 * 32 * 2  # each thread has three leases and makes three more


def test_only_memory_laid_out_as_a_lease_holds_whole_rows():
    pool = BufferPool(64)
    assert pool.holds(pool.lease((2, 3, 5)))
    assert pool.holds(torch.empty(2, 3, 32, dtype=torch.float16))  # its rows are 64 bytes long
    assert not pool.holds(torch.empty(2, 3, 5, dtype=torch.float16))
    assert not pool.holds(torch.empty(5, dtype=torch.float16))  # one row, of which 54 bytes are missing
    assert not pool.holds(pool.lease((2, 3, 5))[:, 1:])
    assert BufferPool(1).holds(torch.empty(2, 3, 5, dtype=torch.float16))


def test_fp32_leases():
    pool = BufferPool(64)
    lease = pool.lease((1, 768, 1, 1), torch.float32)
    assert (lease.dtype, lease.untyped_storage().nbytes()) == (torch.float32, 49152)
    assert lease.data_ptr() % 64 == 0
    lease.fill_(1.5)
    assert lease.unique().tolist() == [1.5]
