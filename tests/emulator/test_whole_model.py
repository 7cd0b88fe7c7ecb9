"""``torch.compile(model, backend="anew")``: layers are found in the graph and share programs."""

import copy

import pytest
import torch
from torch import nn

from anew.frontend.options import Options
from anew.frontend.session import session_for
from tests.emulator.training import TOKENS, worst_error

pytestmark = pytest.mark.usefixtures("fresh")

STRICT = {"device": "emulator", "strict": True}


def gradients(net, call, tokens=TOKENS):
    net.zero_grad(set_to_none=True)
    call(input_ids=tokens, labels=tokens).loss.backward()
    return {name: p.grad.double() for name, p in net.named_parameters() if p.grad is not None}


def reference(net, tokens=TOKENS):
    twin = copy.deepcopy(net).double()
    return gradients(twin, twin, tokens)


def statistics():
    return session_for(Options(**STRICT)).statistics()


def test_a_model_with_the_default_cache_at_several_lengths(llama):
    """Sizes are symbolic from the second length on."""
    net = llama(use_cache=True)
    called = torch.compile(net, backend="anew", options=STRICT)
    for count, tokens in enumerate((TOKENS, TOKENS[:, :8], TOKENS[:1], TOKENS), 1):
        assert worst_error(gradients(net, called, tokens), reference(net, tokens)) < 0.01
        assert statistics().programs == 2 * min(count, 3)
    net.eval()
    with torch.no_grad():
        logits = called(input_ids=TOKENS).logits
        wanted = copy.deepcopy(net).double()(input_ids=TOKENS).logits
    assert (logits - wanted).norm() < 2e-3 * wanted.norm()
    assert statistics().programs == 7
    assert statistics().host_operations == ()


def test_a_returned_cache_is_that_of_eager_pytorch(llama):
    net = llama(use_cache=True).eval()
    with torch.no_grad():
        found = torch.compile(net, backend="anew", options=STRICT)(input_ids=TOKENS).past_key_values
        wanted = net(input_ids=TOKENS).past_key_values
    for mine, eager in zip(found.layers, wanted.layers, strict=True):
        torch.testing.assert_close(mine.keys, eager.keys, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(mine.values, eager.values, rtol=2e-3, atol=2e-3)


def test_checkpointed_layers_are_found(llama):
    net = llama(layers=3)
    wanted = reference(net)
    net.activation_checkpointing_enable({"use_reentrant": False})
    called = torch.compile(net, backend="anew", options=STRICT)
    assert worst_error(gradients(net, called), wanted) < 0.01
    assert (statistics().programs, statistics().dispatches - statistics().calibrations) == (2, 6)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.tanh(self.inner(x))


class Branches(nn.Module):
    """Blocks in a list and in a sequence; a sequence of plain operations between them is no layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.list = nn.ModuleList(Block() for _ in range(2))
        self.middle = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.sequence = nn.Sequential(Block(), Block())

    def forward(self, x):
        for block in self.list:
            x = block(x)
        return self.sequence(self.middle(x).sort(-1)[0])


def check(net, called, x):
    twin, exact = copy.deepcopy(net).double(), x.double()
    net.zero_grad()
    called(x).square().sum().backward()
    twin(exact).square().sum().backward()
    for (name, found), wanted in zip(net.named_parameters(), twin.parameters(), strict=True):
        if wanted.grad is not None:
            assert (found.grad - wanted.grad).norm() < 0.01 * wanted.grad.norm(), name


def test_blocks_in_lists_and_sequences():
    """What lies between them, here a sort, is plain PyTorch and no refusal."""
    net = Branches()
    check(net, torch.compile(net, backend="anew", options=STRICT), torch.randn(4, 8, requires_grad=True))
    assert (statistics().programs, statistics().regions) == (2, 1)


def test_a_model_without_repeated_layers_is_one_region():
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    check(net, torch.compile(net, backend="anew", options=STRICT), torch.randn(4, 8))
    assert (statistics().programs, statistics().regions) == (2, 1)


class Recurrent(nn.Module):
    """The same two blocks, three times over."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        for _ in range(3):
            for block in self.blocks:
                x = block(x)
        return x


def test_layers_that_run_more_than_once():
    net = Recurrent()
    check(net, torch.compile(net, backend="anew", options=STRICT), torch.randn(4, 8, requires_grad=True))
    assert statistics().programs == 2
    assert statistics().dispatches - statistics().calibrations == 12
