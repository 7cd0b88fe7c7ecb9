"""Copies of tensors in buffers: found as long as both are what they were, and for no other tensor."""

import pytest
import torch

from anew.device.buffers import BufferPool
from anew.device.copies import MOST, SAMPLES, Copies, Copy


@pytest.fixture
def held():
    copies, x = Copies(), torch.randn(4, 100)
    buffer = BufferPool(row_bytes=64).lease((4, 100))
    copies.keep(x, Copy(buffer.copy_(x), 0, float(buffer.abs().max())))
    return copies, x, buffer


def test_a_tensor_and_what_shares_its_memory_as_it_is_are_found(held):
    copies, x, buffer = held
    assert copies.find(x).buffer is buffer
    assert copies.find(x.detach()).buffer is buffer


@pytest.mark.parametrize(
    "other", [lambda x: x.clone(), lambda x: x[1:], lambda x: x.view(100, 4), lambda x: x.T, lambda x: x.half()]
)
def test_other_tensors_are_not(held, other):
    copies, x, _ = held
    assert copies.find(other(x)) is None


@pytest.mark.parametrize("write", [lambda x: x.mul_(2), lambda x: x.data.mul_(2), lambda x: x.numpy().fill(1.0)])
def test_a_tensor_that_was_written_to_is_not_found(held, write):
    copies, x, _ = held
    write(x)
    assert copies.find(x) is None


def test_a_buffer_that_was_written_to_is_not_given(held):
    copies, x, buffer = held
    buffer.zero_()
    assert copies.find(x) is None


def test_memory_that_a_dead_tensor_had_is_another_tensors():
    copies = Copies()
    for _ in range(50):
        x = torch.ones(SAMPLES)
        assert copies.find(x) is None
        copies.keep(x, Copy(torch.ones(SAMPLES).half(), 0, 1.0))
        del x


def test_the_latest_are_remembered():
    copies, tensors = Copies(), [torch.randn(8) for _ in range(MOST + 1)]
    for x in tensors:
        copies.keep(x, Copy(x.half(), 0, 1.0))
    assert [copies.find(x) is not None for x in tensors] == [False] + [True] * MOST
