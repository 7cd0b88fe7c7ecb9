"""PEFT's LoRA around a compiled model: gradients of the adapters alone, and everything one does with an adapter."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import anew
from anew.adapters.dora import let_dynamo_capture_dora
from anew.frontend.options import Options
from anew.frontend.session import session_for
from tests.emulator.training import TOKENS, compiled, gradients, reference

pytestmark = pytest.mark.usefixtures("fresh")

STRICT = {"device": "emulator", "strict": True}


def adapted(net, **config):
    torch.manual_seed(1)
    return get_peft_model(net, LoraConfig(r=4, target_modules="all-linear", **config))


def check_gradients(net):
    """Of the adapters against fp64; the gradient of A is 0 while B is."""
    wanted, found = reference(net), gradients(net)
    assert found.keys() == wanted.keys()
    assert found
    assert all("lora_" in name for name in found)
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 0.01 * gradient.norm(), name


def logits(net):
    with torch.no_grad():
        return net(input_ids=TOKENS).logits


def check_logits(net):
    twin = copy.deepcopy(getattr(net, "_orig_mod", net)).double()
    wanted = logits(twin)
    assert (logits(net) - wanted).norm() < 2e-3 * wanted.norm()


@pytest.fixture(params=["before", "after"])
def make(request, llama):
    """A maker of Llamas with adapters, compiled after they were wrapped or before."""
    if request.param == "after":
        return lambda **sizes: compiled(adapted(llama(**sizes)))
    return lambda **sizes: adapted(compiled(llama(**sizes)))


def test_training_adapters_from_zero_on(make):
    model = make()
    steps = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(3):
        check_gradients(model)
        steps.step()
    found = anew.statistics(model)
    assert (found.programs, found.host_operations) == (4, ())  # the first layer's input needs no gradient
    check_that_no_gradient_of_a_frozen_weight_is_computed(model)


def check_that_no_gradient_of_a_frozen_weight_is_computed(model):
    adapters = sorted(tuple(p.shape) for p in model.base_model.model.model.layers[0].parameters() if p.requires_grad)
    backward = [plan for plan in session_for(Options(**STRICT)).plans if "backward" in plan.name]
    assert len(backward) == 2
    for plan in backward:
        shapes = sorted(port.shape for port in plan.outputs)
        assert [shape for shape in shapes if len(shape) == 2] == adapters


def test_evaluating_disabling_and_merging(make):
    model = make(layers=1)
    steps = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        gradients(model)
        steps.step()
    model.eval()
    check_logits(model)
    trained = logits(model)
    with model.disable_adapter():
        check_logits(model)
        assert (logits(model) - trained).norm() > 1e-3 * trained.norm()
    merged = model.merge_and_unload()
    check_logits(merged)
    assert (logits(merged) - trained).norm() < 2e-3 * trained.norm()
    assert [n for n, _ in merged.named_parameters() if "lora" in n] == []


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_adapters_over_checkpointed_layers(llama, dora):
    net = llama()
    net.activation_checkpointing_enable({"use_reentrant": False})
    if dora:
        let_dynamo_capture_dora()
    net = compiled(adapted(net, use_dora=dora))
    net.enable_input_require_grads()
    check_gradients(net)


def test_adapters_of_a_whole_model(llama):
    net = adapted(llama())
    called = torch.compile(net, backend="anew", options=STRICT)
    wanted, found = reference(net), gradients(called)
    for name, gradient in wanted.items():
        assert (found[f"_orig_mod.{name}"] - gradient).norm() <= 0.01 * gradient.norm()
    assert session_for(Options(**STRICT)).statistics().programs == 4


@pytest.mark.filterwarnings("ignore::anew.frontend.placement.PlacementWarning")
def test_dropout_of_adapters_is_drawn_as_in_eager_pytorch(llama):
    net = adapted(llama(), lora_dropout=0.5)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    torch.manual_seed(3)
    wanted = gradients(copy.deepcopy(net))
    compiled(net, strict=False)
    torch.manual_seed(3)
    found = gradients(net)
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 0.02 * gradient.norm(), name
