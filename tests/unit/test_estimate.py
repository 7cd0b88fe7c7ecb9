"""The memory estimate: what autograd keeps is counted exactly, growth is as it should be, too much is refused."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from anew.cli.main import main
from anew.errors import UserError
from anew.train import estimate
from anew.train.config import resolve


class Squares(nn.Module):
    """Keeps its embedded input and the squared one, and nothing else that is not a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 6)
        self.head = nn.Linear(6, 10)

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.table(input_ids).square()))


def test_what_backward_waits_for_is_counted_once_and_without_parameters() -> None:
    ids = torch.zeros(2, 5, dtype=torch.int64)
    embedded = squared = 4 * 10 * 6
    log_probabilities = 4 * 10 * 10
    total_weight = 4
    found = estimate.kept_for_backward(Squares(), ids)
    assert found == 8 * 10 + embedded + squared + log_probabilities + total_weight


def test_a_longer_batch_and_an_engine_need_more() -> None:
    def needed(**choices):
        return estimate.needed_memory(resolve("tiny", "x.txt", {"device": "cpu", **choices}))

    small = needed()
    assert small > 16 * 935_040
    logits = 4 * 8 * 128 * 1024
    assert needed(device="emulator") - small == 4 * 935_040 - (estimate.LOGITS + 1) * logits
    rest = small - 16 * 935_040
    assert needed(batch_size=16) - 16 * 935_040 == pytest.approx(2 * rest, rel=0.01)


def test_too_much_is_refused_with_numbers_before_anything_starts(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(estimate, "available_memory", lambda: 2e9)
    config = resolve("stories110m", "x.txt", {"batch_size": 64})
    with pytest.raises(UserError, match=r"needs about \d+\.\d GB of memory and 2\.0 GB are available"):
        estimate.check_memory(config)
    assert estimate.check_memory(resolve("stories110m", "x.txt", {"batch_size": 64, "allow_swap": True})) > 2e9
    arguments = ["train", "--preset", "stories110m", "--data", "x.txt", "--batch-size", "64", "--out", str(tmp_path)]
    assert main(arguments) == 1
    assert "give --allow-swap to start anyway" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main([*arguments, "--allow-swap"]) == 1
    assert "cannot read x.txt" in capsys.readouterr().err


def test_this_machine_has_memory() -> None:
    assert 1e8 < estimate.available_memory() < 1e14
