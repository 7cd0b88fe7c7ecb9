"""Batch norm: its running statistics are those of PyTorch in fp32, in training and evaluation."""

import copy

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.usefixtures("fresh")

STRICT = {"backend": "anew", "fullgraph": True, "dynamic": False, "options": {"strict": True}}


def images(seed, scale=1.0, shift=0.0):
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * scale + shift


def network(**options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6, **options), nn.ReLU())


def close(found, wanted, tolerance=2e-3):
    assert (found - wanted).norm() <= tolerance * wanted.norm()


@pytest.mark.parametrize("momentum", [0.1, 0.002])
def test_running_statistics_are_those_of_torch(momentum):
    """With a small momentum an update is below the resolution of fp16: the buffers are the host's."""
    net = network(momentum=momentum)
    reference = copy.deepcopy(net).double()
    compiled = torch.compile(net, **STRICT)
    for step in range(6):
        x = images(step, shift=2.0)
        compiled(x).square().mean().backward()
        reference(x.double())
    found, wanted = net[1], reference[1]
    assert found.running_mean.dtype == torch.float32
    close(found.running_mean, wanted.running_mean)
    close(found.running_var, wanted.running_var)
    close(found.running_var - 1, wanted.running_var - 1, 5e-3)
    assert found.num_batches_tracked == wanted.num_batches_tracked == 6


def test_the_two_updates_of_a_norm_used_twice_are_in_order():
    norm = nn.BatchNorm1d(4)
    reference = copy.deepcopy(norm).double()
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))

    def twice(module, x):
        return module(module(x) * 3 + 1)

    found = torch.compile(lambda x: twice(norm, x), **STRICT)(x)
    close(found, twice(reference, x.double()))
    close(norm.running_mean, reference.running_mean)
    close(norm.running_var, reference.running_var)
    assert norm.num_batches_tracked == 2


def test_evaluation_uses_the_statistics_and_leaves_them():
    net = network()
    with torch.no_grad():
        net[1].running_mean.uniform_(-1, 1)
        net[1].running_var.uniform_(0.5, 2)
        net[1].weight.uniform_(0.5, 2)
    net.eval()
    before = copy.deepcopy(net.state_dict())
    reference = copy.deepcopy(net).double()
    x = images(0)
    found = torch.compile(net, **STRICT)(x)
    wanted = reference(x.double())
    close(found, wanted)
    found.square().mean().backward()
    wanted.square().mean().backward()
    for a, b in zip(net.parameters(), reference.parameters(), strict=True):
        close(a.grad, b.grad)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_statistics_that_something_else_reads_stay_with_torch():
    norm = nn.BatchNorm1d(4)
    reference = copy.deepcopy(norm)

    def both(module, x):
        return module(x) + module.running_mean

    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="native_batch_norm"):
        found = torch.compile(lambda x: both(norm, x), backend="anew", dynamic=False)(x)
    close(found, both(reference, x))
    close(norm.running_mean, reference.running_mean)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_batches_of_any_scale(scale):
    """Squares of 1e3 are beyond fp16, those of 1e-3 lose their digits: neither is ever formed."""
    norm = nn.BatchNorm2d(3, eps=1e-5 * scale**2)
    reference = copy.deepcopy(norm).double()
    x, exact = images(0, scale).requires_grad_(), images(0, scale).double().requires_grad_()
    cotangent = images(1)
    torch.compile(norm, **STRICT)(x).backward(cotangent)
    reference(exact).backward(cotangent.double())
    close(x.grad, exact.grad, 3e-3)
    close(norm.running_var, reference.running_var)
