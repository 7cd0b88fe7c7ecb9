"""Kernels give the same bits on one thread and on several, and broadcasting is torch's."""

import pytest
import torch

from anew.device.emulator.fused import binary, finish_product_, scale
from anew.device.emulator.lookup import function_table, look_up
from anew.device.emulator.reduce import narrow_sum
from anew.device.emulator.rounding import absmax, round_elementwise_, round_float64, round_matmul_
from anew.device.emulator.softmax import softmax

PLAIN = {"add": torch.add, "sub": torch.sub, "mul": torch.mul}
SHAPES = [
    ((4, 64, 288), (288,)),  # a norm's weight
    ((2, 3, 64, 48), (1, 1, 64, 48)),  # rotary embedding
    ((2, 64, 3, 48), (64, 1, 48)),
    ((3, 128, 128), (128, 128)),  # a mask
    ((3, 128, 128), (3, 128, 1)),  # a number for each row
    ((128, 256), (1, 1)),
    ((), (128, 256)),
    ((288,), (4, 64, 288)),
    ((64, 1, 5, 1, 40), (1, 7, 1, 5, 40)),  # both sides broadcast
    ((2, 64, 4, 5, 64), (2, 1, 4, 1, 64)),  # axes shared and not in turn
    ((0, 4), (4,)),
    ((), ()),
]


def values(*shape: int) -> torch.Tensor:
    """Numbers of fp16, subnormal ones and zeros among them."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-26, 6, shape, generator=generator)
    return (torch.randn(shape, generator=generator) * 2.0**exponents).half().float()


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("left", "right"), SHAPES)
@pytest.mark.parametrize("kind", PLAIN)
def test_two_tensors_broadcast(kind, left, right):
    x, y = values(*left), values(*right)
    assert torch.equal(binary(kind, x, y), round_elementwise_(PLAIN[kind](x, y).contiguous()))


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: scale(x, 0.25),
        lambda x: finish_product_(x, None, 2.0),
        lambda x: finish_product_(x, 0.5, 2.0),
        absmax,
        round_elementwise_,
        round_matmul_,
        lambda x: round_float64(x.double()),
        lambda x: softmax(x, -1),
        lambda x: softmax(x, 0),
        lambda x: narrow_sum(x, [1], True),
        lambda x: look_up(x, function_table("tanh")),
    ],
)
def test_threads_change_no_bit(compute):
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        x = values(301, 300) * 37.0
        found.append([torch.as_tensor(part).clone() for part in (compute(x), x) for part in _parts(part)])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def _parts(result):
    return result if isinstance(result, tuple) else (result,)
