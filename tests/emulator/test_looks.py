"""Gradients that stay with the engine are looked at beside the next program, and replaced before they are read."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import nn

import anew
from anew.errors import AnewError
from anew.frontend.binding import Binding
from anew.frontend.model import session_of
from anew.frontend.scales import FIRST, INTERVAL
from anew.frontend.segment import Segment
from anew.optim import EngineAdamW, clip_norm, settle

TOKENS, WIDTH = 256, 192


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.inner(x))


class Layers:
    """A compiled stack and its optimizer; ``settled`` calls of it have measured, and more are lean."""

    def __init__(self, overlap: bool, calls: int = FIRST + 1, layers: int = 1) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(*(Residual() for _ in range(layers)))
        self.x, self.cotangent = torch.randn(2, TOKENS, WIDTH)
        anew.compile(self.net, device="emulator", chip="m4", strict=True)
        self.optimizer = EngineAdamW(self.net, self.net.parameters(), overlap=overlap)
        self.counts = session_of(self.net).counts
        for _ in range(calls):
            self.optimizer.zero_grad()
            self.backward(self.tokens(TOKENS))
        self.optimizer.zero_grad()

    def tokens(self, different: int) -> torch.Tensor:
        """Tokens that are all alike where 1 is different: then the last weight's gradient grows, and nothing else."""
        return self.x[:different].expand(TOKENS, -1).clone().requires_grad_()

    def backward(self, tokens: torch.Tensor, net: nn.Module | None = None) -> None:
        alike = bool((tokens[0] == tokens[1]).all())
        ((net or self.net)(tokens) * self.cotangent[: 1 if alike else TOKENS]).sum().backward()

    def gradient(self) -> torch.Tensor:
        self.optimizer.to_grads()
        return self.net[-1].inner.weight.grad

    def plain(self, *different: int) -> torch.Tensor:
        """The gradient of plain PyTorch over so many different tokens in each of some backward passes."""
        other = nn.Sequential(*(Residual() for _ in self.net))
        other.load_state_dict(self.net.state_dict())
        for n in different:
            self.backward(self.tokens(n).detach(), other)
        return other[-1].inner.weight.grad


@pytest.mark.parametrize("layers", [1, 2])
def test_one_that_grew_is_that_of_a_run_that_measures(layers, monkeypatch) -> None:
    """It is replaced while the layer below runs, or when the backward pass ends."""
    at_once, later = Layers(overlap=False, layers=layers), Layers(overlap=True, layers=layers)
    replaced: list[object] = []
    replace = Segment._replace
    monkeypatch.setattr(Segment, "_replace", lambda *arguments: (replaced.append(arguments), replace(*arguments))[1])
    for net in (at_once, later):
        before = net.counts.rescaled
        net.backward(net.tokens(1))
        assert net.counts.rescaled > before
    assert len(replaced) >= 1
    assert torch.equal(later.gradient(), at_once.gradient())


def test_one_that_is_good_is_kept(monkeypatch) -> None:
    at_once, later = Layers(overlap=False, layers=2), Layers(overlap=True, layers=2)
    monkeypatch.setattr(Segment, "_replace", None)
    for net in (at_once, later):
        net.backward(net.tokens(TOKENS))
    assert torch.equal(later.gradient(), at_once.gradient())


def test_the_next_micro_batch_may_measure(monkeypatch) -> None:
    net = Layers(overlap=True, calls=INTERVAL - 1)
    for different in (1, TOKENS):
        net.backward(net.tokens(different))
    assert error(net.gradient(), net.plain(1, TOKENS)) < 0.01


def test_after_the_backward_pass_its_inputs_may_be_overwritten() -> None:
    net = Layers(overlap=True)
    tokens, wanted = net.tokens(1), net.plain(1)
    net.backward(tokens)
    with torch.no_grad():
        tokens.normal_()
    assert error(net.gradient(), wanted) < 0.01


def test_models_of_one_session_in_two_threads(monkeypatch) -> None:
    one, other = Layers(overlap=True), Layers(overlap=True)
    look = Binding.look
    monkeypatch.setattr(Binding, "look", lambda *arguments: (time.sleep(0.1), look(*arguments))[1])

    def train(net: Layers) -> None:
        for _ in range(3):
            net.backward(net.tokens(TOKENS))
            norms.append(clip_norm(net.optimizer, net.net.parameters(), 1.0))
            net.optimizer.step()
            net.optimizer.zero_grad()

    norms: list[float] = []
    threads = [threading.Thread(target=train, args=(net,)) for net in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for net in (one, other):
        settle(net.optimizer)
    assert len(norms) == 6
    assert torch.tensor(norms).isfinite().all()
    assert torch.equal(one.net[0].inner.weight, other.net[0].inner.weight)


def test_one_that_no_run_replaces_is_no_number_in_the_norm(monkeypatch) -> None:
    net = Layers(overlap=True)

    def fail(*_: object) -> None:
        raise AnewError("no operand scales fit")

    monkeypatch.setattr(Segment, "_measured", fail)
    with pytest.raises(AnewError, match="no operand scales fit"):
        net.backward(net.tokens(1))
    assert not torch.tensor(clip_norm(net.optimizer, net.net.parameters(), 1.0)).isfinite()
