"""Regions at work: gradients against fp64, scales that follow jumps, and everything a training loop may do."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import anew
from anew.errors import AnewError, UserError
from anew.frontend.options import Options
from anew.frontend.scales import COTANGENT
from anew.frontend.session import session_for
from anew.frontend.staleness import LOOKS, StaleWarning
from tests.emulator.training import TOKENS, compiled, gradients, loss_of, reference, worst_error

pytestmark = pytest.mark.usefixtures("fresh")


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_gradients_are_those_of_fp64(llama, numerics, kv_heads):
    net = llama(kv_heads=kv_heads)
    wanted = reference(net)
    compiled(net, numerics=numerics)
    assert worst_error(gradients(net), wanted) < 0.01
    assert worst_error(gradients(net), wanted) < 0.01


def test_logits_are_those_of_fp64(llama):
    net = llama()
    wanted = copy.deepcopy(net).double()(input_ids=TOKENS).logits
    with torch.no_grad():
        found = compiled(net)(input_ids=TOKENS).logits
    assert (found - wanted).norm() < 2e-3 * wanted.norm()


@pytest.mark.parametrize("layers", [1, 4])
def test_all_layers_share_one_forward_and_one_backward_program(llama, layers):
    net = compiled(llama(layers=layers))
    gradients(net)
    gradients(net)
    found = anew.statistics(net)
    assert (found.programs, found.regions) == (2, 1)
    assert found.dispatches == 2 * 2 * layers + found.calibrations + found.rescaled


def test_other_shapes_and_evaluation_have_their_own_programs(llama):
    net = llama()
    short = TOKENS[:, :7]
    wanted, wanted_short = reference(net), reference(net, short)
    compiled(net)
    assert worst_error(gradients(net), wanted) < 0.01
    assert worst_error(gradients(net, short), wanted_short) < 0.01
    with torch.no_grad():
        evaluated = loss_of(net)
    assert worst_error(gradients(net), wanted) < 0.01
    assert abs(evaluated - loss_of(net).detach()) < 1e-3
    assert anew.statistics(net).programs == 5


def test_a_graph_kept_gives_the_same_gradients_twice(llama):
    net = compiled(llama())
    gradients(net)
    loss = loss_of(net)
    runs = []
    for _ in range(2):
        net.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        runs.append({n: p.grad.double() for n, p in net.named_parameters()})
    assert worst_error(*runs) < 1e-3


def test_gradients_accumulate(llama):
    net = llama()
    other = TOKENS.flip(0, 1)
    wanted = reference(net)
    wanted = {n: g + wanted[n] for n, g in reference(net, other).items()}
    compiled(net)
    net.zero_grad()
    loss_of(net).backward()
    loss_of(net, other).backward()
    assert worst_error({n: p.grad.double() for n, p in net.named_parameters()}, wanted) < 0.01


def test_two_forwards_before_their_backwards(llama):
    net = llama()
    other = TOKENS.flip(0, 1)
    wanted = [reference(net), reference(net, other)]
    compiled(net)
    gradients(net)
    losses = [loss_of(net), loss_of(net, other)]
    for loss, gradient in reversed(list(zip(losses, wanted, strict=True))):
        net.zero_grad(set_to_none=True)
        loss.backward()
        assert worst_error({n: p.grad.double() for n, p in net.named_parameters()}, gradient) < 0.01


def training_scales(net):
    """The scale states of a model's layers in the programs that train."""
    scales = anew.state_dict(net)["scales"]
    return {(n, key): s for n, states in scales.items() for key, s in states.items() if "inference" not in key}


def test_evaluation_between_forward_and_backward_changes_nothing(llama):
    net = compiled(llama())
    gradients(net)
    undisturbed = gradients(net)
    loss = loss_of(net)
    before = training_scales(net)
    assert len(before) == 4  # two layers, two directions
    with torch.no_grad():
        loud = copy.deepcopy(TOKENS).fill_(3)
        loss_of(net, loud)
    assert training_scales(net) == before
    net.zero_grad(set_to_none=True)
    loss.backward()
    assert worst_error({n: p.grad.double() for n, p in net.named_parameters()}, undisturbed) < 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_cotangent_that_is_not_finite_gives_gradients_that_are_not(llama, value):
    net = compiled(llama())
    hidden = torch.randn(2, 6, 32, requires_grad=True)
    angles = net.model.rotary_emb(hidden, torch.arange(6)[None])
    layer = net.model.layers[0]
    y = layer(hidden, position_embeddings=angles)
    cotangent = torch.ones(y.shape)
    cotangent[0, 0, 0] = value
    y.backward(cotangent)
    assert not hidden.grad.isfinite().any()
    assert not any(p.grad.isfinite().any() for p in layer.parameters())


def test_cotangents_of_zero_give_gradients_of_zero(llama):
    net = compiled(llama())
    (loss_of(net) * 0).backward()
    assert all((p.grad == 0).all() for p in net.parameters())
    wanted = reference(net)
    assert worst_error(gradients(net), wanted) < 0.01


@pytest.mark.parametrize("factor", [2.0**-60, 2.0**40, 2.0**-130])
def test_the_size_of_the_cotangents_does_not_matter(llama, factor):
    """2^-130 is subnormal in fp32: the scale that would lift it is itself beyond fp32."""
    net = compiled(llama(layers=1))
    layer, x = net.model.layers[0], torch.randn(1, 6, 32, requires_grad=True)
    angles = net.model.rotary_emb(x, torch.arange(6)[None])
    found = []
    for scale in (1.0, factor):
        x.grad = None
        layer(x, position_embeddings=angles).backward(torch.full((1, 6, 32), scale))
        found.append(x.grad.double() / scale)
    assert {state["cotangent"] for state in training_scales(net).values()} == {COTANGENT}
    assert found[0].abs().max() > 0
    assert (found[1] - found[0]).norm() < (0.05 if factor == 2.0**-130 else 1e-3) * found[0].norm()


@pytest.mark.parametrize("name", ["mlp.down_proj", "self_attn.q_proj", "self_attn.v_proj"])
def test_a_weight_that_jumps_is_followed(llama, name):
    net = compiled(llama())
    gradients(net)
    gradients(net)
    with torch.no_grad():
        net.get_submodule(f"model.layers.1.{name}").weight.mul_(64.0)
    assert worst_error(gradients(net), reference(net)) < 0.01


class Block(nn.Module):
    """Two products with a nonlinearity between them that a gain in front can drive anywhere."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gain = nn.Parameter(torch.ones(16))
        self.up, self.down = nn.Linear(16, 32, bias=False), nn.Linear(32, 16, bias=False)

    def forward(self, x):
        return x + self.down(F.silu(self.up(x * self.gain)))


class Stack(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def block_gradients(net, x, factor=1.0):
    net.zero_grad(set_to_none=True)
    (net(x).square().mean() * factor).backward()
    return {n: p.grad.double() / factor for n, p in net.named_parameters() if p.grad is not None}


X = torch.randn(4, 16, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("jump", [2.0**9, 2.0**-12])
def test_an_inner_activation_that_jumps_makes_the_region_run_again(jump):
    net = compiled(Stack(Block()), numerics="exact")
    for _ in range(2):
        block_gradients(net, X)
    settled = anew.statistics(net).rescaled
    with torch.no_grad():
        net.layers[0].gain.mul_(jump)
    wanted = block_gradients(copy.deepcopy(net).double(), X.double())
    assert worst_error(block_gradients(net, X), wanted) < 0.01
    assert anew.statistics(net).rescaled > settled
    again = anew.statistics(net).rescaled
    assert worst_error(block_gradients(net, X), wanted) < 0.01
    assert anew.statistics(net).rescaled == again


def test_a_first_call_is_calibration_and_a_settled_one_runs_once():
    net = compiled(Stack(Block()), numerics="exact")
    block_gradients(net, X * 100)
    first = anew.statistics(net)
    assert first.rescaled == 0
    block_gradients(net, X * 100)
    second = anew.statistics(net)
    assert second.dispatches - first.dispatches == 2
    assert (second.calibrations, second.rescaled) == (first.calibrations, 0)


def test_large_activations_stay_in_range(llama):
    net = llama()
    with torch.no_grad():
        weight = net.model.embed_tokens.weight
        weight.mul_(100.0 / weight.square().mean().sqrt())
    wanted = reference(net)
    compiled(net)
    assert worst_error(gradients(net), wanted) < 0.01


@pytest.mark.parametrize("value", [70000.0, float("inf"), float("nan"), -70000.0])
def test_an_input_beyond_fp16_is_an_error_that_names_the_port(value):
    net = compiled(Stack(Block()))
    x = X.clone()
    x[1, 2] = value
    sentence = r"region 1 forward: input 'primals_\d' \[4, 16\] reaches .*, beyond fp16's 65504"
    with pytest.raises(AnewError, match=sentence):
        net(x)


def test_a_value_inside_beyond_fp16_is_an_error():
    net = compiled(Stack(Block()))
    with torch.no_grad():
        net.layers[0].up.weight.mul_(3000.0)
        net.layers[0].down.weight.mul_(3000.0)
    with pytest.raises(AnewError, match="region 1 forward: a value inside this region is beyond fp16's 65504"):
        net(X * 10)


@pytest.mark.parametrize(("name", "value"), [("up.weight", float("nan")), ("gain", 1e6), ("gain", float("inf"))])
def test_a_weight_that_fp16_cannot_hold_is_an_error_that_names_it(name, value):
    net = compiled(Stack(Block()))
    net.layers[0].get_parameter(name).data.view(-1)[0] = value
    with pytest.raises(AnewError, match=r"region 1 forward: weight 'primals_\d' \[.*\] reaches .*, beyond fp16"):
        net(X)


def test_a_backward_that_overflows_at_first_is_brought_lower():
    """Through the gain the cotangent grows by 2^14, from 2^6: it must start lower, and the gradients stay right."""
    net = Stack(Block())
    with torch.no_grad():
        net.layers[0].gain.fill_(2.0**14)
        net.layers[0].up.weight.mul_(2.0**-14)
        net.layers[0].down.weight.mul_(16.0)
    wanted_input = X.double().requires_grad_()
    copy.deepcopy(net).double()(wanted_input).square().mean().backward()
    compiled(net)
    for _ in range(3):
        x = X.clone().requires_grad_()
        net(x).square().mean().backward()
        assert (x.grad - wanted_input.grad).norm() < 0.01 * wanted_input.grad.norm()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x, mask=None):
        q, k, v = (f(x).view(1, 6, 2, 8).transpose(1, 2) for f in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(6, 16)


@pytest.mark.parametrize("low", [-float("inf"), torch.finfo(torch.float32).min, "bool"])
def test_masks_of_minus_infinity_become_finite(low):
    visible = torch.ones(6, 6, dtype=torch.bool).tril()
    mask = visible if low == "bool" else torch.zeros(6, 6).masked_fill(~visible, low)
    net, x = Attention(), torch.randn(6, 16, generator=torch.Generator().manual_seed(1))

    def run(module, module_mask, dtype):
        at = x.to(dtype).requires_grad_()
        y = module(at, module_mask)
        y.square().sum().backward()
        return y.double(), at.grad.double()

    wanted = run(copy.deepcopy(net).double(), mask if low == "bool" else mask.double(), torch.float64)
    module = torch.compile(net, backend="anew", options={"strict": True}, dynamic=False)
    for found, want in zip(run(module, mask, torch.float32), wanted, strict=True):
        assert (found - want).norm() < 5e-3 * want.norm()


def test_a_row_that_sees_nothing_is_finite_whatever_its_scores():
    net, x = Attention(), torch.full((6, 16), 8.0)
    with torch.no_grad():
        net.k.weight.copy_(-net.q.weight)
        net.k.bias.copy_(-net.q.bias)  # every score is far below 0
    mask = torch.full((6, 6), torch.finfo(torch.float32).min)
    module = torch.compile(net, backend="anew", options={"strict": True}, dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(module(x, mask), net(x, mask), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_masks_of_transformers(llama, implementation):
    """Left padding: rows that see nothing stay finite, and the others are those of PyTorch."""
    net = llama(attn_implementation=implementation)
    mask = torch.ones(2, 13, dtype=torch.long)
    mask[0, :4] = 0
    wanted = net(input_ids=TOKENS, attention_mask=mask).logits
    found = compiled(net)(input_ids=TOKENS, attention_mask=mask).logits
    seen = mask.bool()
    assert found.isfinite().all()
    assert (found[seen] - wanted[seen]).norm() < 2e-3 * wanted[seen].norm()
    found[seen].square().mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


class Adapted(nn.Module):
    """A frozen linear layer with a low-rank update whose second matrix starts at zero."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Linear(16, 16, bias=False).requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(4, 16) * 0.1), nn.Parameter(torch.zeros(16, 4))

    def forward(self, x):
        return x + self.base(x) + F.linear(F.linear(x, self.a), self.b)


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_a_low_rank_update_from_zero_on(numerics):
    net = compiled(Stack(Adapted(), Adapted()), numerics=numerics)
    found, steps = {}, torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        wanted = block_gradients(copy.deepcopy(net).double(), X.double())
        found = block_gradients(net, X)
        assert found.keys() == wanted.keys()
        assert len(found) == 4
        for name, gradient in wanted.items():
            assert (found[name] - gradient).norm() <= 0.01 * gradient.norm(), name
        steps.step()
    assert found["layers.0.a"].abs().max() > 0
    assert net.layers[0].base.weight.grad is None


def test_frozen_weights_get_no_gradient_and_the_rest_the_right_one(llama):
    net = llama()
    net.model.layers[0].requires_grad_(False)
    net.model.layers[1].mlp.requires_grad_(False)
    net.model.embed_tokens.requires_grad_(False)
    wanted = reference(net)
    compiled(net)
    found = gradients(net)
    assert worst_error(found, wanted) < 0.01
    assert not [n for n in found if n.startswith("model.layers.0") or "layers.1.mlp" in n]


@pytest.mark.parametrize("write", ["data", "no_grad", "swap"])
def test_writes_to_weights_are_seen_by_the_next_step(llama, write):
    """A write through ``.data`` leaves the version counter as it was."""
    net = compiled(llama())
    gradients(net)
    for parameter in net.model.layers[0].parameters():
        if write == "data":
            parameter.data.mul_(1.5)
        elif write == "swap":
            parameter.data = parameter.data * 1.5
        else:
            with torch.no_grad():
                parameter.mul_(1.5)
    assert worst_error(gradients(net), reference(net)) < 0.01


@pytest.mark.parametrize("write", ["data", "swap", "in place"])
def test_writes_to_frozen_weights_are_seen_by_the_next_call(llama, write):
    net = compiled(llama().requires_grad_(False))
    before = net(input_ids=TOKENS).logits
    weight = net.model.layers[0].mlp.up_proj.weight
    if write == "data":
        weight.data.mul_(1.5)
    elif write == "swap":
        weight.data = weight.data * 1.5
    else:
        weight.mul_(1.5)
    wanted = copy.deepcopy(net).double()(input_ids=TOKENS).logits
    assert (net(input_ids=TOKENS).logits - wanted).norm() < 2e-3 * wanted.norm() < 0.1 * (before - wanted).norm()


def test_a_write_to_one_element_of_a_frozen_weight_is_seen_late_and_said(llama):
    net = compiled(llama().requires_grad_(False))
    net(input_ids=TOKENS)
    net.model.layers[0].mlp.up_proj.weight.data[7, 3] += 0.5
    with pytest.warns(StaleWarning, match="weight .* was written through its data"):
        [net(input_ids=TOKENS) for _ in range(LOOKS)]
    wanted = copy.deepcopy(net).double()(input_ids=TOKENS).logits
    assert (net(input_ids=TOKENS).logits - wanted).norm() < 2e-3 * wanted.norm()


class TwoUses(nn.Module):
    """A weight that the forward reads in two ways and the backward only multiplies: it is uploaded in two forms."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(16, 16) * 0.1)

    def forward(self, x):
        return x @ self.weight + self.weight.sum(0)


def test_a_write_is_seen_in_both_forms_of_a_weight():
    net = compiled(Stack(TwoUses()))
    (layer,) = net.layers
    for _ in range(2):
        x = X.clone().requires_grad_()
        layer(x).sum().backward()
        wanted = layer.weight.detach().sum(1).expand(4, 16)
        assert (x.grad - wanted).norm() < 2e-3 * wanted.norm()
        layer.weight.data.copy_(torch.randn(16, 16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_refused(llama, dtype):
    with pytest.raises(UserError, match=f"parameter 'self_attn.q_proj.weight' is {dtype}; load the model in float32"):
        anew.compile(llama().to(dtype))
    mixed = llama()
    mixed.model.layers[1].to(dtype)
    with pytest.raises(UserError, match="load the model in float32"):
        anew.compile(mixed)


def test_a_model_without_repeated_layers_is_refused():
    with pytest.raises(UserError, match=r"Linear has no nn.ModuleList or nn.Sequential of layers"):
        anew.compile(nn.Linear(3, 3))


def test_statistics_are_of_compiled_models_only(llama):
    with pytest.raises(UserError, match=r"was not compiled by anew.compile"):
        anew.statistics(llama())


def test_keys_of_the_state_dict_stay_clean(llama):
    net = llama()
    keys = list(net.state_dict())
    assert list(compiled(net).state_dict()) == keys


def test_without_scaling_exact_arithmetic_loses_small_gradients(llama):
    """What operand scales are for: without them, and without a loss scale, gradients drown in the product grid."""
    net = llama()
    wanted = reference(net)
    plain = gradients(compiled(copy.deepcopy(net), numerics="exact", scaling="none"))
    scaled = gradients(compiled(net, numerics="exact"))
    assert worst_error(plain, wanted) > 0.1
    assert worst_error(scaled, wanted) < 0.01


@pytest.mark.usefixtures("young")
def test_a_dead_model_leaves_nothing_in_the_pool(llama):
    options = Options(device="emulator", strict=True)
    allocated = []
    for _ in range(3):
        net = compiled(llama())
        gradients(net)
        del net
        gc.collect()
        allocated.append(session_for(options).device.buffers.allocated_bytes)
    assert allocated[1] == allocated[2]
