"""The engine's state in a checkpoint: a process that loads it computes the same bits, without a calibrating run."""

import json

import pytest
import torch

import anew
from anew.errors import UserError
from anew.frontend.loss.check import PENDING


def compiled(llama, **options):
    return anew.compile(llama(), device="emulator", chip="m4", **options)


def train(net, steps, labels=False):
    """Losses of SGD steps; the batch of a step depends on nothing else."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for step in range(*steps):
        tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(step))
        if labels:
            loss = net(input_ids=tokens, labels=tokens).loss
        else:
            loss = torch.nn.functional.cross_entropy(net(input_ids=tokens).logits.flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("numerics", "labels"), [("fast", True), ("exact", False)])
def test_a_loaded_state_goes_on_to_the_bit_and_calibrates_nothing(llama, fresh, numerics, labels):
    net = compiled(llama, numerics=numerics)
    train(net, (0, 3), labels)
    state = json.loads(json.dumps(anew.state_dict(net)))
    weights = {name: x.clone() for name, x in net.state_dict().items()}
    expected = train(net, (3, 6), labels)
    final = anew.state_dict(net)

    fresh()
    again = compiled(llama, numerics=numerics)
    again.load_state_dict(weights)
    anew.load_state_dict(again, state)
    assert anew.state_dict(again) == state  # also before anything was compiled
    assert train(again, (3, 6), labels) == expected
    assert anew.statistics(again).calibrations == 0
    assert anew.state_dict(again) == final


def test_the_state_names_every_layer_and_direction(llama, fresh):
    net = compiled(llama)
    train(net, (0, 1), labels=True)
    with torch.no_grad():
        net(input_ids=torch.zeros(2, 16, dtype=torch.int64))
    scales = anew.state_dict(net)["scales"]
    directions = {name: sorted(key.rsplit(" ", 1)[0] for key in states) for name, states in scales.items()}
    layers = [states for name, states in directions.items() if name.startswith("model.layers.")]
    assert layers == [["backward", "forward", "inference"]] * 2
    assert any(key.startswith("loss backward") for key in directions["lm_head.weight"])
    assert all(state["calibrated"] for states in scales.values() for state in states.values())
    assert anew.state_dict(net)["loss"]["used"] is True


def test_a_model_that_was_not_checked_yet_will_be(llama, fresh):
    state = anew.state_dict(compiled(llama))
    assert state == {"scales": {}, "loss": {"used": None, "reason": PENDING.reason}}
    net = compiled(llama)
    anew.load_state_dict(net, json.loads(json.dumps(state)))
    train(net, (0, 1), labels=True)
    assert anew.statistics(net).loss.used


def test_the_state_of_another_model_is_refused(llama, fresh):
    net = compiled(llama)
    state = {"scales": {"model.layers.7.self_attn.q_proj.weight": {}}, "loss": None}
    with pytest.raises(UserError, match=r"no parameter 'model.layers.7.self_attn.q_proj.weight'"):
        anew.load_state_dict(net, state)
    with pytest.raises(UserError, match=r"not compiled by anew.compile"):
        anew.state_dict(llama())
