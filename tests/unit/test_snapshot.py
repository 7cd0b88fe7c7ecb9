"""Snapshots of training: parameters, optimizer and generator come back to the bit; what does not fit is named."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from anew.errors import AnewError, UserError
from anew.train import snapshot
from anew.train.checkpoint import Checkpoint, Checkpoints, open_checkpoint


class Net(nn.Module):
    """A tied pair of layers, dropout, a running mean: every kind of state."""

    def __init__(self, width: int = 4, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, width, bias=bias)
        self.norm = nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width)
        self.third = nn.Linear(width, width)
        self.third.weight = self.second.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(nn.functional.dropout(self.second(self.norm(self.first(x))), 0.3))


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=0.01, fused=True)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = net(torch.randn(8, 4)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def saved(folder: Path, net: nn.Module, optimizer: torch.optim.Optimizer, **choices: bool) -> Checkpoint:
    return open_checkpoint(Checkpoints(folder).save(1, *snapshot.take(net, optimizer, **choices)))


def test_training_goes_on_to_the_bit(tmp_path: Path) -> None:
    net = Net()
    optimizer = adamw(net)
    train(net, optimizer, 3)
    checkpoint = saved(tmp_path, net, optimizer)
    expected = train(net, optimizer, 3)

    again = Net()
    fresh = adamw(again)
    train(again, fresh, 1)  # what was there is replaced
    snapshot.restore(checkpoint, again, fresh)
    assert train(again, fresh, 3) == expected
    for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True):
        assert a.equal(b)


def test_tied_weights_are_written_once_and_the_optimizer_by_parameter(tmp_path: Path) -> None:
    net = Net()
    optimizer = adamw(net)
    train(net, optimizer, 1)
    checkpoint = saved(tmp_path, net, optimizer)
    weights = checkpoint.tensors("model")
    assert "second.weight" in weights
    assert "third.weight" not in weights
    assert "norm.running_mean" in weights
    assert set(checkpoint.tensors("optimizer")) == {
        f"{name}.{key}" for name, _ in net.named_parameters() for key in ("step", "exp_avg", "exp_avg_sq")
    }


def test_a_snapshot_before_the_first_step(tmp_path: Path) -> None:
    net = Net()
    checkpoint = saved(tmp_path, net, adamw(net))
    again = Net()
    optimizer = adamw(again)
    train(again, optimizer, 1)
    snapshot.restore(checkpoint, again, optimizer)
    assert not optimizer.state


def test_only_what_is_trained(tmp_path: Path) -> None:
    net = Net()
    net.first.requires_grad_(False)
    before = copy.deepcopy(net.first.weight)
    checkpoint = saved(tmp_path, net, adamw(net), trained_only=True)
    assert not any(name.startswith(("first", "norm.running")) for name in checkpoint.tensors("model"))
    snapshot.restore(checkpoint, net, adamw(net))
    assert net.first.weight.equal(before)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (Net(width=6), r"'first.bias' is float32 \[4\] there, float32 \[6\] here"),
        (Net(bias=False), "does not fit the model, which has no 'first.bias'"),
        (nn.Sequential(nn.Linear(2, 2)), "does not fit the model: it has no '0.weight'"),
        (Net().double(), r"'first.bias' is float32 \[4\] there, float64 \[4\] here"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_and_nothing_changes(tmp_path: Path, other: nn.Module, sentence) -> None:
    checkpoint = saved(tmp_path, Net(), adamw(Net()))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(UserError, match=sentence):
        snapshot.restore(checkpoint, other, adamw(other))
    assert all(x.equal(before[name]) for name, x in other.state_dict().items())


def test_an_optimizer_of_another_model_is_named(tmp_path: Path) -> None:
    net = Net()
    optimizer = adamw(net)
    train(net, optimizer, 1)
    tensors, documents = snapshot.take(net, optimizer)
    tensors["optimizer"]["fourth.weight.exp_avg"] = torch.zeros(2)
    checkpoint = open_checkpoint(Checkpoints(tmp_path).save(1, tensors, documents))
    with pytest.raises(UserError, match=r"its optimizer has 'fourth.weight.exp_avg', float32 \[2\]"):
        snapshot.restore(checkpoint, net, optimizer)


def test_an_optimizer_with_other_state_is_refused() -> None:
    net = Net()
    optimizer = torch.optim.LBFGS(net.parameters())
    optimizer.step(lambda: net(torch.ones(8, 4)).square().mean())
    with pytest.raises(AnewError, match=r"LBFGS keeps '.*', which is no tensor of a parameter"):
        snapshot.take(net, optimizer)
