"""What goes from one region to the next is taken from its buffer, unless somebody wrote to it meanwhile."""

import pytest
import torch
from torch import nn

import anew
from anew.device import transfer
from anew.frontend import binding


class Layer(nn.Module):
    def __init__(self, share):
        super().__init__()
        self.share = share
        self.inner = nn.Linear(32, 32)

    def forward(self, x):
        return (x + torch.tanh(self.inner(x))) * self.share


class Model(nn.Module):
    def __init__(self, between, share):
        super().__init__()
        self.layers = nn.ModuleList(Layer(share) for _ in range(4))
        self.between = between

    def forward(self, x):
        for layer in self.layers:
            x = self.between(layer(x))
        return x


@pytest.fixture
def stored(monkeypatch):
    """The shapes that the host converts to fp16."""
    shapes = []

    def counted(buffer, x, exponent):
        shapes.append(tuple(x.shape))
        return transfer.store(buffer, x, exponent)

    monkeypatch.setattr(binding, "store", counted)
    return shapes


def step(between=lambda x: x, share=1.0, compiled=True):
    torch.manual_seed(0)
    model = Model(between, share)
    x = torch.randn(2, 16, 32, requires_grad=True)
    if compiled:
        anew.compile(model, device="emulator")
    model(x).square().sum().backward()
    return [x.grad, *(p.grad for p in model.parameters())]


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2 * float(b.abs().max()))


def test_activations_and_cotangents_are_converted_once(stored):
    same(step(), step(compiled=False))
    stored.clear()
    step()
    assert stored.count((2, 16, 32)) == 2  # the first layer's argument and the last one's cotangent


def doubled_in_place(x):
    return x.mul_(2)


def doubled_behind_autograd(x):
    x.data.mul_(2)
    return x


@pytest.mark.parametrize("between", [doubled_in_place, doubled_behind_autograd, lambda x: x * 2])
def test_what_was_written_between_layers_is_converted_again(stored, between):
    same(step(between), step(between, compiled=False))
    assert stored.count((2, 16, 32)) >= 4


def test_a_cotangent_that_shrinks_from_layer_to_layer_is_brought_up_again(stored):
    found, expected = step(share=2.0**-7), step(share=2.0**-7, compiled=False)
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-2
    assert 2 < stored.count((2, 16, 32)) <= 2 * 5


def copied(x):
    return x.clone(memory_format=torch.contiguous_format)


@pytest.mark.parametrize("hooks", [(copied, copied), (lambda x: x.cpu().clone(), lambda x: x.clone())])
def test_saved_activations_that_hooks_copied_give_the_same_gradients(llama_like, hooks):
    """What is known of the magnitudes of a saved activation stays with its buffer, which a copy is not."""
    expected = llama_like()
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        found = llama_like()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def llama_like(llama):
    def gradients():
        torch.manual_seed(0)
        net = anew.compile(llama(), device="emulator")
        tokens = torch.arange(2 * 16).reshape(2, 16) % 64
        net(input_ids=tokens, labels=tokens).loss.backward()
        return [p.grad for p in net.parameters()]

    return gradients
