"""A step of training, and how far its gradients are from those of fp64."""

import copy

import torch
from torch.nn import functional as F

import anew
from anew.frontend.model import session_of
from anew.optim import EngineAdamW

TOKENS = torch.randint(0, 64, (2, 13), generator=torch.Generator().manual_seed(7))


def loss_of(net, tokens=TOKENS):
    logits = net(input_ids=tokens[:, :-1]).logits
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def gradients(net, tokens=TOKENS, factor=1.0):
    net.zero_grad(set_to_none=True)
    (loss_of(net, tokens) * factor).backward()
    return {name: p.grad.double() / factor for name, p in net.named_parameters() if p.grad is not None}


def worst_error(found, wanted):
    """The largest relative error over all parameters, which must be the same ones."""
    assert found.keys() == wanted.keys()
    errors = [float((found[n] - wanted[n]).norm() / wanted[n].norm()) for n in wanted]
    assert not any(e != e for e in errors)
    return max(errors)


def reference(net, tokens=TOKENS):
    return gradients(copy.deepcopy(net).double(), tokens)


def compiled(net, **options):
    return anew.compile(net, device="emulator", **({"strict": True} | options))


def assert_buffers_return(net, train):
    """Some steps of ``train(net, optimizer, steps, first)`` lease no more than the steps before."""
    optimizer = EngineAdamW(net, net.parameters())
    train(net, optimizer, steps=2)
    buffers = session_of(net).device.buffers
    before = buffers.allocated_bytes
    train(net, optimizer, steps=3, first=2)
    assert buffers.allocated_bytes == before
