"""Signs in rotary embeddings: moved to the sines, forward and backward, and nothing else."""

import pytest
import torch

from anew.frontend.options import Options
from anew.frontend.session import session_for
from anew.mil import parse_program

pytestmark = pytest.mark.usefixtures("fresh")

STRICT = {"strict": True}
SIZE = 8


def half(x):
    return torch.cat((-x[..., SIZE // 2 :], x[..., : SIZE // 2]), dim=-1)


def rotate(q, k, cos, sin):
    return (q * cos + half(q) * sin) @ (k * cos + sin * half(k)).transpose(-1, -2)


def by_tokens(q, k, cos, sin):
    """The tokens of one half of the sequence, with their signs turned, and the others."""
    return (torch.cat([q[:, :, :6], -k[:, :, :2], -q[:, :, 4:5]], 2) * sin[:9, :1]).exp() * k[:, :, :9] * cos[:9]


def large(q, k, cos, sin):
    return half(q) * k + cos * sin


def read_twice(q, k, cos, sin):
    turned = half(q)
    return turned * sin + turned * k * cos


def check(function):
    """Results and gradients are PyTorch's; returns how many elements either program multiplies by -1."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 10, SIZE), (2, 3, 10, SIZE), (10, SIZE), (10, SIZE)]
    inputs = [torch.randn(s, generator=generator) for s in shapes]
    compiled = torch.compile(function, backend="anew", dynamic=False, fullgraph=True, options=STRICT)
    found = []
    for f, dtype in ((compiled, torch.float32), (function, torch.float64)):
        args = [x.to(dtype, copy=True).requires_grad_(x.dim() == 4) for x in inputs]
        y = f(*args)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape))
        found.append([y.detach(), *(x.grad for x in args[:2])])
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= 2e-3 * b.norm()
    plans = session_for(Options(strict=True)).plans
    return [_turned(parse_program(plan.text, plan.weights).function(None)) for plan in plans]


def _turned(function):
    numbers = [(op, v.const) for op in function.ops if op.kind == "mul" for v in op.tensors() if v.constant]
    return sum(op.output.type.numel for op, number in numbers if number == -1.0)


def test_the_sines_of_all_heads_have_the_signs():
    """Once for queries and keys, and the backward takes them."""
    assert check(rotate) == [10 * SIZE // 2, 0]


def test_along_any_axis():
    assert check(by_tokens) == [3, 0]


@pytest.mark.parametrize("function", [large, read_twice])
def test_other_signs_stay(function):
    assert check(function) == [2 * 3 * 10 * SIZE // 2] * 2


def test_pieces_that_come_as_one_tuple_stay():
    def halves(x, sines):
        return torch.cat((-x).chunk(2, -1), -1) * sines

    x, sines = torch.randn(4, 2 * SIZE), torch.randn(2 * SIZE)
    found = torch.compile(halves, backend="anew", dynamic=False, options={"strict": True})(x, sines)
    torch.testing.assert_close(found, halves(x, sines), rtol=2e-3, atol=2e-3)
