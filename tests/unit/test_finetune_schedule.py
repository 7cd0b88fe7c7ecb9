"""Learning rates against mlx's own schedulers; PyTorch's optimizers under mlx_lm's names."""

import mlx.core as mx
import pytest
import torch
from mlx_lm.tuner.utils import build_schedule as schedule_of_mlx
from torch import nn

from anew.errors import UserError
from anew.finetune.optimizer import OPTIMIZERS, make_optimizer
from anew.finetune.schedule import build_schedule


@pytest.mark.parametrize("warmup", [{}, {"warmup": 5}, {"warmup": 3, "warmup_init": 1e-5}])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cosine_decay", [1e-3, 20]),
        ("cosine_decay", [1e-3, 20, 1e-4]),
        ("exponential_decay", [1e-3, 0.9]),
        ("step_decay", [1e-3, 0.5, 7]),
        ("linear_schedule", [1e-3, 1e-5, 12]),
    ],
)
def test_schedules_are_those_of_mlx(name, arguments, warmup):
    settings = {"name": name, "arguments": arguments, **warmup}
    ours, theirs = build_schedule(settings, 1.0), schedule_of_mlx(settings)
    for step in range(30):
        assert ours(step) == pytest.approx(float(theirs(mx.array(step))), rel=1e-5, abs=1e-9)


def test_without_a_schedule_the_rate_stays():
    assert build_schedule(None, 3e-4)(100) == 3e-4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "cosine"}, "lr_schedule: name 'cosine' is unknown: did you mean 'cosine_decay'?"),
        ({"nam": "x"}, "lr_schedule: 'nam' is unknown: did you mean 'name'?"),
        ({"name": "cosine_decay", "arguments": [1e-3]}, "takes the arguments [init, decay_steps, end], not [0.001]"),
        ({"name": "cosine_decay", "arguments": [1e-3, 0]}, "'decay_steps' of cosine_decay must be at least 1, not 0"),
        ({"name": "cosine_decay", "arguments": [1e-3, 5], "warmup": -1}, "'warmup' must be a whole number of steps"),
    ],
)
def test_what_is_wrong_with_a_schedule_is_one_sentence(settings, said):
    with pytest.raises(UserError) as refused:
        build_schedule(settings, 1.0)
    assert said in str(refused.value)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_takes_a_step_on_what_trains(name):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4))
    model[1].requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    optimizer = make_optimizer(model, name, {name: {}}, 0.1)
    model(torch.ones(1, 4)).square().sum().backward()
    optimizer.step()
    changed = [not p.equal(b) for p, b in zip(model.parameters(), before, strict=True)]
    assert changed == [True, False, False]


def test_an_optimizer_takes_its_own_arguments():
    settings = {"adamw": {"betas": [0.8, 0.9], "weight_decay": 0.3, "bias_correction": True}, "sgd": {}}
    group = make_optimizer(nn.Linear(2, 2), "adamw", settings, 0.1).param_groups[0]
    assert (list(group["betas"]), group["weight_decay"], group["lr"]) == ([0.8, 0.9], 0.3, 0.1)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("adam", {"adamax": {}}, "optimizer_config: optimizer 'adamax' is unknown: did you mean 'adam'?"),
        ("adam", {"adam": {"beta": 1}}, "optimizer_config: adam's 'beta' is unknown: did you mean 'betas'?"),
        ("adam", {"adam": {"eps": -1.0}}, "optimizer_config: PyTorch refuses adam: "),
        ("adam", {"adam": {"bias_correction": False}}, "drop 'bias_correction'"),
        ("muon", {}, "optimizer_config: PyTorch refuses muon: "),
    ],
)
def test_what_is_wrong_with_an_optimizer_is_one_sentence(name, settings, said):
    with pytest.raises(UserError) as refused:
        make_optimizer(nn.Linear(2, 2), name, settings, 0.1)  # Muon takes no bias
    assert said in str(refused.value)
