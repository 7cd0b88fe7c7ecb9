"""Convolutional networks on the engine, strict: gradients against fp64, and random windows against PyTorch."""

import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("fresh")


class Residual(nn.Module):
    """A block of a residual network, with a stride in its shortcut."""

    def __init__(self, activation):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.short = nn.Conv2d(4, 8, 1, 2, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.activation = activation

    def forward(self, x):
        h = self.activation(self.norms[0](self.first(x)))
        return self.activation(self.norms[1](self.second(h)) + self.norms[2](self.short(x)))


def network(activation, pool):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        activation,
        pool,
        Residual(activation),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


def cosines(net, **options):
    """The cosine of every parameter's gradient with that of fp64, after a calibrating step."""
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    y = torch.randint(0, 5, (8,), generator=torch.Generator().manual_seed(2))
    reference = copy.deepcopy(net).double()
    F.cross_entropy(reference(x.double()), y).backward()
    compiled = torch.compile(net, backend="anew", fullgraph=True, dynamic=False, options={"strict": True} | options)
    for _ in range(2):
        net.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
    pairs = zip(net.parameters(), reference.parameters(), strict=True)
    return [F.cosine_similarity(a.grad.double().flatten(), b.grad.flatten(), 0) for a, b in pairs]


@pytest.mark.parametrize("chip", ["m4", "m5"])
def test_gradients_of_a_smooth_network(chip):
    assert min(cosines(network(nn.GELU(), nn.AvgPool2d(2)), chip=chip, numerics="exact")) >= 0.9999


def test_gradients_of_a_network_with_kinks():
    """Rounding to fp16 takes a few values across a kink of relu or to another maximum; alone it costs as much."""
    assert min(cosines(network(nn.ReLU(), nn.MaxPool2d(3, 2, 1)))) >= 0.98


sides = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(3, 8), st.integers(3, 8)),
    kernel=sides,
    stride=sides,
    dilation=sides,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    batch=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    transposed=st.booleans(),
)
def test_convolutions_of_any_window(fresh, size, kernel, stride, dilation, padding, batch, groups, transposed):
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    sizes = [
        (n - 1) * s - 2 * p + e if transposed else n + 2 * p - e + 1
        for n, s, p, e in zip(size, stride, padding, spans, strict=True)
    ]
    assume(min(sizes) >= 1)
    function = F.conv_transpose2d if transposed else F.conv2d
    window = (stride, padding, 0, groups, dilation) if transposed else (stride, padding, dilation, groups)
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, 4, *size), (4, 4 // groups, *kernel)
    operands = [torch.randn(shape, generator=generator).half().float().requires_grad_() for shape in shapes]
    exact = [x.detach().double().requires_grad_() for x in operands]
    fresh()  # a process has room for 128 programs
    compiled = torch.compile(
        lambda x, w: function(x, w, None, *window), backend="anew", dynamic=False, options={"strict": True}
    )
    found, wanted = compiled(*operands), function(*exact, None, *window)
    assert (found - wanted).norm() <= 2e-3 * wanted.norm()
    cotangent = torch.randn(wanted.shape, generator=generator)
    found.backward(cotangent)
    wanted.backward(cotangent.double())
    for a, b in zip(operands, exact, strict=True):
        assert (a.grad - b.grad).norm() <= 2e-3 * b.grad.norm()


def test_a_batch_too_tall_for_one_image_is_taken_in_parts():
    """The images of a batch lie one below the other; an axis of the engine's tensors is 65536 long at most."""
    x = torch.randn(70, 1, 1000, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.randn(1, 1, 3, 1, generator=torch.Generator().manual_seed(1), requires_grad=True)
    compiled = torch.compile(F.conv2d, backend="anew", dynamic=False, options={"strict": True})
    found = compiled(x, weight)
    found.sum().backward()
    exact = [v.detach().double().requires_grad_() for v in (x, weight)]
    wanted = F.conv2d(*exact)
    wanted.sum().backward()
    assert (found - wanted).norm() <= 2e-3 * wanted.norm()
    for a, b in zip((x, weight), exact, strict=True):
        assert (a.grad - b.grad).norm() <= 2e-3 * b.grad.norm()
