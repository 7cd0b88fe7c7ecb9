"""Every graph that a training script brings: lengths, modes, wrappers, writes to a compiled model."""

import copy
import io
import logging

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import anew
from anew.errors import UserError
from anew.frontend import layer_call
from anew.frontend.options import Options
from anew.frontend.session import BudgetWarning, session_for
from tests.emulator.training import TOKENS, compiled, gradients, loss_of, reference, worst_error

pytestmark = pytest.mark.usefixtures("fresh")


class Layer(nn.Module):
    """A layer with a number that is part of its graph."""

    def __init__(self, factor=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.factor = nn.Linear(8, 8), factor

    def forward(self, x):
        return x + torch.tanh(self.inner(x)) * self.factor


class Stack(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def error_of(layer, called, x):
    """The larger relative error of the gradients of x and of the weight of a layer."""
    twin, exact, x = copy.deepcopy(layer).double(), x.double().requires_grad_(), x.clone().requires_grad_()
    layer.zero_grad()
    called(x).square().sum().backward()
    twin(exact).square().sum().backward()
    pairs = [(x.grad, exact.grad), (layer.inner.weight.grad, twin.inner.weight.grad)]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


@pytest.mark.filterwarnings(
    "error::anew.frontend.placement.PlacementWarning", "error::anew.frontend.session.BudgetWarning"
)
def test_the_default_configuration_of_24_layers_in_all_modes(llama, caplog):
    """Two lengths to train on and two to evaluate: six programs, whatever the depth, and nothing runs eagerly."""
    net = llama(layers=24, use_cache=True)
    short = TOKENS[:, :8]
    wanted, wanted_short = reference(net), reference(net, short)
    compiled(net)
    assert worst_error(gradients(net), wanted) < 0.02
    assert worst_error(gradients(net, short), wanted_short) < 0.02
    net.eval()
    with torch.no_grad():
        loss_of(net), loss_of(net, short)
    net.train()
    assert worst_error(gradients(net), wanted) < 0.02
    found = anew.statistics(net)
    assert (found.programs, found.regions, found.host_operations) == (6, 4, ())
    gradients(net)
    assert anew.statistics(net).dispatches - found.dispatches == 48
    net.eval().generate(short, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert anew.statistics(net).programs == 8  # one for the prompt, one for every token after it
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_layer_compiled_without_a_word_on_sizes_takes_every_length():
    layer = Layer()
    called = torch.compile(layer, backend="anew", options={"device": "emulator", "strict": True})
    for length in (5, 7, 3, 7, 5):
        assert error_of(layer, called, torch.randn(length, 8)) < 0.01
    assert session_for(Options(device="emulator", strict=True)).statistics().programs == 6


def test_a_float_that_varies_is_a_number_of_the_graph():
    layer = Layer()
    called = torch.compile(layer, backend="anew", options={"device": "emulator", "strict": True})
    for factor in (0.5, 1.5, 2.5, 1.5):
        layer.factor = factor
        assert error_of(layer, called, torch.randn(4, 8)) < 0.01
    assert session_for(Options(device="emulator", strict=True)).statistics().regions == 3


def test_equal_graphs_share_programs_across_models_and_compiles():
    """Another model, a second compile of the same one, and torch.compile of a layer all find the programs loaded."""
    first, second = Stack(Layer(), Layer()), Stack(Layer())
    x = torch.randn(4, 8, requires_grad=True)
    compiled(first)(x).sum().backward()
    compiled(second)(x).sum().backward()
    compiled(first)(x).sum().backward()
    torch.compile(Layer(), backend="anew", options={"device": "emulator", "strict": True})(x).sum().backward()
    assert (anew.statistics(first).programs, anew.statistics(first).regions) == (2, 1)


def test_layers_that_differ_in_configuration_have_programs_of_their_own():
    net = compiled(Stack(Layer(1.0), Layer(0.5), Layer(1.0)))
    net(torch.randn(4, 8, requires_grad=True)).sum().backward()
    assert (anew.statistics(net).programs, anew.statistics(net).regions) == (4, 2)


def test_the_first_layer_over_a_frozen_embedding_computes_no_gradient_of_its_input(llama):
    net = llama()
    net.model.embed_tokens.requires_grad_(False)
    wanted = reference(net)
    compiled(net)
    assert worst_error(gradients(net), wanted) < 0.01
    backward = [plan for plan in session_for(Options(device="emulator", strict=True)).plans if "backward" in plan.name]
    assert sorted(len(plan.outputs) for plan in backward) == [9, 10]  # nine weights; and the input's gradient


def test_inference_mode_between_steps(llama):
    net = llama()
    wanted = reference(net)
    compiled(net)
    with torch.inference_mode():
        before = loss_of(net)
    assert worst_error(gradients(net), wanted) < 0.01
    with torch.inference_mode():
        assert loss_of(net) == before
    assert worst_error(gradients(net), wanted) < 0.01


def test_autocast_is_refused(llama):
    net = compiled(llama())
    with torch.autocast("cpu"), pytest.raises(UserError, match=r"called under torch.autocast.*leave autocast away"):
        loss_of(net)
    gradients(net)


def test_a_copy_and_a_loaded_model_are_plain_ones_and_can_be_compiled(llama):
    net = compiled(llama())
    gradients(net)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    ran = anew.statistics(net).dispatches
    for other in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        loss_of(other)
        assert anew.statistics(net).dispatches == ran
        with pytest.raises(UserError, match="not compiled"):
            anew.statistics(other)
    assert worst_error(gradients(compiled(other)), reference(net)) < 0.01
    assert anew.statistics(other).programs == 2


def test_loading_weights_moving_and_stepping_after_the_compile(llama):
    net = compiled(llama())
    gradients(net)
    with torch.no_grad():
        state = {name: x * 1.5 for name, x in net.state_dict().items()}
    net.load_state_dict(state)
    assert worst_error(gradients(net), reference(net)) < 0.01
    net.to("cpu").float()
    steps = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(2):
        assert worst_error(gradients(net), reference(net)) < 0.01
        steps.step()
    net.load_state_dict(state, assign=True)
    assert worst_error(gradients(net), reference(net)) < 0.01
    assert anew.statistics(net).programs == 4  # and their lean ones


def test_a_model_moved_to_half_precision_is_refused_when_it_runs(llama):
    net = compiled(llama())
    net.to(torch.bfloat16)
    with pytest.raises(UserError, match=r"parameter '.*weight.*' is torch.bfloat16; keep the model in float32"):
        loss_of(net)


def test_tied_weights_get_both_gradients(llama):
    net = llama(tie_word_embeddings=True)
    wanted = reference(net)
    assert worst_error(gradients(compiled(net)), wanted) < 0.01
    tied = Stack(Layer(), Layer())
    tied.layers[1].inner.weight = tied.layers[0].inner.weight
    twin, x = copy.deepcopy(tied).double(), torch.randn(4, 8)
    twin(x.double()).sum().backward()
    for _ in range(2):
        tied.zero_grad()
        compiled(tied)(x).sum().backward()
        gradient, exact = tied.layers[0].inner.weight.grad, twin.layers[0].inner.weight.grad
        assert (gradient - exact).norm() < 0.01 * exact.norm()


def test_freezing_between_steps(llama):
    net = compiled(llama())
    gradients(net)
    net.model.layers[1].requires_grad_(False)
    assert worst_error(gradients(net), reference(net)) < 0.01
    net.model.layers[1].requires_grad_(True)
    assert worst_error(gradients(net), reference(net)) < 0.01


def test_a_compiled_model_trains_as_eager_pytorch_does(llama):
    net, twin = llama(layers=1), llama(layers=1)
    compiled(net)
    for model in (net, twin):
        steps = torch.optim.SGD(model.parameters(), lr=0.3)
        for step in range(6):
            loss = loss_of(model, TOKENS[:, : 12 - step % 2])
            loss.backward()
            steps.step()
            steps.zero_grad()
    assert abs(loss_of(net) - loss_of(twin)) < 1e-3
    assert loss_of(net) < loss_of(llama(layers=1)) - 0.1


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_of_transformers(llama, reentrant):
    """The forward program gives the hidden states alone; the backward one computes the layer again."""
    net = llama()
    wanted = reference(net)
    net.activation_checkpointing_enable({"use_reentrant": reentrant})
    compiled(net)
    for _ in range(2):
        assert worst_error(gradients(net), wanted) < 0.01
    forward, backward = session_for(Options(device="emulator", strict=True)).plans
    assert [port.shape for port in forward.outputs] == [(2, 12, 32)]
    assert backward.flops > 2.5 * forward.flops
    assert anew.statistics(net).host_operations == ()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_around_compiled_layers(reentrant):
    net = Stack(Layer(), Layer())
    twin, x = copy.deepcopy(net).double(), torch.randn(4, 8, requires_grad=True)
    twin(x.double()).sum().backward()
    compiled(net)
    y = x
    for layer in net.layers:
        y = checkpoint(layer, y, use_reentrant=reentrant)
    y.sum().backward()
    for found, wanted in zip(net.parameters(), twin.parameters(), strict=True):
        assert (found.grad - wanted.grad).norm() < 0.01 * wanted.grad.norm()
    assert anew.statistics(net).dispatches >= 6  # forward, again, backward, of two layers


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(8, 8)
        self.checkpointed = False

    def body(self, x):
        return x + torch.tanh(F.dropout(self.inner(x), 0.5, training=self.training))

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=False) if self.checkpointed else self.body(x)


@pytest.mark.filterwarnings("ignore::anew.frontend.placement.PlacementWarning")
def test_a_checkpointed_layer_keeps_what_dropout_dropped():
    net, x = Stack(Dropping(), Dropping()), torch.randn(4, 8)
    compiled(net, strict=False)
    found = []
    for checkpointed in (False, True):
        for layer in net.layers:
            layer.checkpointed = checkpointed
        net.zero_grad()
        torch.manual_seed(3)
        net(x).square().sum().backward()
        found.append([p.grad.clone() for p in net.parameters()])
    for plain, again in zip(*found, strict=True):
        assert (again - plain).norm() < 2e-3 * plain.norm()


def test_too_many_graphs_of_a_layer_are_an_error_that_names_the_guard(monkeypatch):
    monkeypatch.setattr(layer_call, "RECOMPILES", 3)
    net = compiled(Stack(Layer()))
    x = torch.randn(4, 8)
    net(x), net(x[:3])
    for _ in range(2):
        with pytest.raises(UserError, match=r"graph \d of one function, of 3 .* guard that failed last: .*args\[0\]"):
            net(x[:2])
    net(x)


class Moded(Layer):
    mode = ""

    def forward(self, x):
        return super().forward(x) if self.mode else x


def test_a_layer_that_pytorch_would_run_eagerly_is_an_error_that_names_the_guard():
    layer = Moded()
    called = torch.compile(layer, backend="anew", options={"device": "emulator"})
    with torch._dynamo.config.patch(recompile_limit=4):
        for layer.mode in ("one", "two", "three"):
            called(torch.randn(4, 8))
        layer.mode = "four"
        with pytest.raises(BackendCompilerFailed, match=r"graph 4 of one function, of 4 .* failed last: .*mode"):
            called(torch.randn(4, 8))


def test_a_quarter_of_the_programs_loaded_gives_one_warning():
    layer = Layer()
    called = torch.compile(layer, backend="anew", options={"device": "emulator"})

    def train(lengths):
        for length in lengths:
            called(torch.randn(length, 8)).sum().backward()

    with pytest.warns(BudgetWarning, match="32 programs are loaded, of the 128 .* pad batches to few lengths") as found:
        train(range(2, 20))
    assert len(found) == 1
