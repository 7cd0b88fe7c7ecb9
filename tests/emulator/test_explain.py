"""anew.explain: what of a step runs where, checked against PyTorch's own flop counter."""

import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import anew

pytestmark = pytest.mark.usefixtures("fresh")

TOKENS = torch.arange(2 * 16).reshape(2, 16) % 64


def flops_of_eager_step(net, **inputs):
    with FlopCounterMode(display=False) as counter:
        net(**inputs).loss.backward()
    net.zero_grad()
    return counter.get_total_flops()


def test_flops_on_engine_and_host_add_up_to_those_of_eager_pytorch(llama):
    net = llama(attn_implementation="eager")
    found = anew.explain(net, {"input_ids": TOKENS, "labels": TOKENS})
    logits = 2 * 32 * 32 * 64  # [32, 32] x [32, 64]; the loss region's backward computes them again
    assert found.host_flops == 0
    assert found.engine_flops == flops_of_eager_step(net, input_ids=TOKENS, labels=TOKENS) + logits
    assert found.coverage == 1.0


def test_flops_of_a_head_that_stays_apart(llama):
    net = llama(attn_implementation="eager")
    eager = flops_of_eager_step(net, input_ids=TOKENS, labels=TOKENS)
    found = anew.explain(anew.compile(net, loss="apart"), {"input_ids": TOKENS, "labels": TOKENS})
    head = 3 * 2 * 32 * 32 * 64  # forward, gradient of the hidden states, gradient of the head: [32, 32] x [32, 64]
    assert found.loss is None
    assert found.host_flops == head
    assert found.engine_flops == eager - head
    assert found.coverage == found.engine_flops / (found.engine_flops + head)


def test_layers_share_programs_and_each_is_dispatched(llama):
    found = anew.explain(llama(layers=5), {"input_ids": TOKENS, "labels": TOKENS})
    assert found.regions == 2
    assert [p.dispatches for p in found.programs] == [5, 1, 1, 5]  # layers, head and loss
    assert found.dispatches == 12
    assert found.loss is not None
    assert found.loss.used


def test_bytes_are_those_of_the_ports(llama):
    found = anew.explain(llama(layers=1), {"input_ids": TOKENS, "labels": TOKENS})
    forward = found.programs[0]
    layer = llama(layers=1).model.layers[0]
    assert forward.weight_bytes >= 2 * sum(p.numel() for p in layer.parameters())  # fp16, rows padded to 64 bytes
    assert found.bytes_moved == sum(p.dispatches * (p.bytes_in + p.weight_bytes + p.bytes_out) for p in found.programs)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.second(torch.cumsum(self.first(x), 1))


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x * 2


def test_host_operations_name_place_shape_rule_and_source():
    found = anew.explain(Stack(), torch.randn(2, 6, 8))
    sums = [use for use in found.host if use.operation == "aten.cumsum.default" and "forward" in use.where]
    assert {use.where: use.calls for use in sums} == {"region 1 forward": 1, "region 2 forward": 2}  # x has no gradient
    inside = sums[0]
    assert inside.shape == (2, 6, 8)
    assert "no lowering" in inside.rule
    assert "torch.cumsum(self.first(x), 1)" in inside.source
    outside = next(use for use in found.host if use.operation == "aten.mul.Tensor")
    assert outside.where == "outside every region"
    assert (inside.kind, outside.kind) == ("fallback", "outside")
    assert outside.source.startswith(f"{__file__}:")
    assert found.coverage == 1.0
    assert 0 < found.coverage_by_count < 1


def test_the_model_is_left_alone(llama):
    net = llama()
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    anew.explain(net, {"input_ids": TOKENS, "labels": TOKENS})
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert net.model.layers[0]._compiled_call_impl is None


def test_a_compiled_model_is_explained_with_its_own_options(llama):
    net = anew.compile(llama(), device="emulator", chip="m5", strict=True)
    assert anew.explain(net, {"input_ids": TOKENS, "labels": TOKENS}).chip == "m5"
    assert anew.statistics(net).dispatches == 0


def test_strict_models_are_explained_where_they_would_be_refused():
    net = anew.compile(Stack(), device="emulator", strict=True)
    assert "aten.cumsum.default" in {use.operation for use in anew.explain(net, torch.randn(2, 6, 8)).host}


def test_table_and_data(llama):
    found = anew.explain(llama(), {"input_ids": TOKENS, "labels": TOKENS})
    text = str(found)
    assert f"{found.coverage:.1%} of the matmul and convolution flops" in text
    assert "region 1 backward" in text
    assert "outside every region" in text
    data = json.loads(json.dumps(found.as_dict()))
    assert data["dispatches"] == 6
    assert data["loss"]["used"] is True
    assert "Head and loss on the engine" in text
    assert data["coverage"] == found.coverage


def test_a_model_without_a_training_step_is_one_sentence():
    net = Stack().requires_grad_(False)
    with pytest.raises(anew.UserError, match="no training step to explain"):
        anew.explain(net, torch.randn(2, 6, 8))


def test_what_the_compiler_spared_is_listed_and_logged_with_its_projection(llama, caplog):
    with caplog.at_level("INFO", logger="anew.compiler.gains"):
        found = anew.explain(llama(attn_implementation="eager"), {"input_ids": TOKENS, "labels": TOKENS}, chip="m4")
    backward = [gain for gain in found.gains if gain.program == "region 1 backward"]
    assert len(backward) == 2
    assert all(gain.elements > 0 and gain.milliseconds > 0 for gain in backward)
    assert {str(gain) for gain in found.gains} == set(caplog.messages)
    assert all(str(gain) in str(found) for gain in found.gains)
    assert "projected" in str(backward[0])


def test_a_chip_without_rates_has_gains_without_times(llama):
    found = anew.explain(llama(attn_implementation="eager"), {"input_ids": TOKENS, "labels": TOKENS}, chip="m3")
    assert all(gain.milliseconds is None for gain in found.gains)
    assert "no times are projected" in str(found)
