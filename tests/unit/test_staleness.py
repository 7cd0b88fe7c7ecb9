"""What a look at a tensor sees: in-place operations and dense writes at once, any write in so many looks."""

import pytest
import torch

from anew.frontend.staleness import LOOKS, Original


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16, torch.float64])
def tensor(request):
    return torch.randn(37, 53, generator=torch.Generator().manual_seed(0)).to(request.param)


def test_an_untouched_tensor_is_as_it_was(tensor):
    original = Original(tensor)
    assert original.marked(tensor)
    assert not any(original.rewritten(tensor) for _ in range(2 * LOOKS))
    assert not original.rewritten_anywhere(tensor)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.add_(1),
        lambda x: x.data.mul_(1.01),
        lambda x: x.set_(x.clone()),
        lambda x: x.data.copy_(x.flip(0)),
    ],
)
def test_a_change_of_the_whole_is_seen_at_once(tensor, change):
    original = Original(tensor)
    change(tensor)
    assert not original.marked(tensor)


@pytest.mark.parametrize("place", [(0, 1), (5, 52), (36, 51)])
def test_a_write_to_one_element_is_seen_in_so_many_looks(tensor, place):
    original = Original(tensor)
    tensor.data[place] += 0.5
    assert original.marked(tensor)
    assert original.rewritten_anywhere(tensor)
    assert [original.rewritten(tensor) for _ in range(LOOKS)].count(True) == 1


def test_two_elements_that_change_places_are_seen(tensor):
    original = Original(tensor)
    row = tensor.data[3]
    row[[4, 5]] = row[[5, 4]]
    assert original.rewritten_anywhere(tensor)


@pytest.mark.parametrize("shape", [(1,), (3, 1), (0, 4)])
def test_small_and_empty_tensors(shape):
    tensor = torch.ones(shape)
    original = Original(tensor)
    assert original.marked(tensor)
    assert not original.rewritten_anywhere(tensor)
