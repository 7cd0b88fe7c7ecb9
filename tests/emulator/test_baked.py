"""Frozen weights as constants: equal to weights as inputs, within the chip's budgets, and never out of date."""

import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

import anew
from anew.compiler.bake import quantize
from anew.errors import UserError
from anew.frontend.model import session_of
from anew.frontend.options import Options
from anew.frontend.scales import weight_exponent
from anew.frontend.staleness import LOOKS, StaleWarning
from tests.emulator.training import TOKENS, compiled, gradients, reference

pytestmark = pytest.mark.usefixtures("fresh")


def adapted(net, bits, *, targets=("q_proj", "down_proj"), **options):
    """A compiled model with adapters whose B is not zero, so that every gradient is not."""
    torch.manual_seed(1)
    net = get_peft_model(net, LoraConfig(r=4, target_modules=targets if isinstance(targets, str) else list(targets)))
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.2)
    return compiled(net, base_bits=bits, **options)


def losses(net, steps=3):
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = net(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def logits(net):
    with torch.no_grad():
        return net(input_ids=TOKENS).logits + 0.0


def base_weights(net):
    return [m.base_layer.weight for m in net.modules() if hasattr(m, "base_layer")]


def layers_baked(net):
    return [use.layers for use in anew.statistics(net).baked]


def test_convolutions_with_constants_agree_with_matmuls_of_inputs_bit_for_bit(llama, fresh):
    found = {}
    for bits in (0, 16):
        net = adapted(llama(), bits, numerics="exact", chip="m4")
        gradients(net)
        logits(net)
        found[bits] = {**gradients(net), "logits": logits(net)}  # second calls run constants
        layers = layers_baked(net)
        fresh()
    assert layers == [1, 1, 1, 1, 2]  # forward and backward, the first layer by itself; evaluation
    for name, wanted in found[0].items():
        assert torch.equal(found[16][name], wanted), name


def test_eight_bits_are_eight_bits_from_the_first_call_on(llama):
    """Inputs have the numbers of the constants, so it does not matter which of the two a call takes."""
    net = adapted(llama(), 8, numerics="exact", chip="m4")
    first, second = logits(net), logits(net)
    assert layers_baked(net) == [2]
    assert torch.equal(first, second)


def test_losses_of_constants_are_those_of_inputs(llama, fresh):
    wanted = losses(adapted(llama(layers=1), 0))
    for bits, most in ((16, 0.005), (8, 0.02)):
        fresh()
        net = adapted(llama(layers=1), bits)
        found = losses(net)
        assert all(abs(a - b) <= most * b for a, b in zip(found, wanted, strict=True))
        assert (anew.statistics(net).stale, min(layers_baked(net))) == (0, 1)
    assert found != wanted  # eight bits are not sixteen


@pytest.mark.parametrize("make", ["llama", "gpt2"])
def test_gradients_of_an_8_bit_base_are_those_of_the_quantized_weights(llama, make):
    """Of linear layers [out, in], and of GPT-2's [in, out], whose rows are input channels."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=64, n_positions=64, use_cache=False)
    config.resid_pdrop = config.attn_pdrop = config.embd_pdrop = 0.0
    net = adapted(llama(layers=1) if make == "llama" else GPT2LMHeadModel(config), 8, targets="all-linear")
    twin = copy.deepcopy(net)
    inside = [w for name, w in twin.named_parameters() if "base_layer" in name and w.dim() == 2]
    for weight in inside:
        exponent = weight_exponent(weight.abs().max().item())
        rows, codes = quantize(weight.data * 2.0**exponent)
        weight.data = rows.float() * codes * 2.0**-exponent
    wanted = reference(twin)
    gradients(net)
    found = gradients(net)
    assert all(layers_baked(net))
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 0.01 * gradient.norm(), name


def test_training_evaluation_and_generation_keep_to_a_few_programs(llama):
    net = adapted(llama(layers=4), 8, chip="m4")
    losses(net, 2)
    net.eval()
    logits(net), logits(net)
    answer = net.generate(input_ids=TOKENS[:, :4], max_new_tokens=4, do_sample=False)
    assert answer.shape == (2, 8)
    found = anew.statistics(net)
    assert {use.programs for use in found.baked if use.layers} == {1}  # however many layers
    assert {use.layers for use in found.baked} == {0, 1, 3, 4}  # the prompt's program ran once; the first is apart
    assert found.programs <= 20
    assert found.host_operations == ()


def merge(net):
    """Merge the adapters: the graph without them is that of the base alone, which was baked."""
    yield logits_of_base
    net.merge_adapter()
    yield logits


def unmerge(net):
    net.merge_adapter()
    yield logits
    net.unmerge_adapter()
    yield logits_of_base


def logits_of_base(net):
    with net.disable_adapter():
        return logits(net)


def write_data(net):
    yield logits
    for weight in base_weights(net):
        weight.data.add_(0.05)
    yield logits


def load_weights(net):
    yield logits
    net.load_state_dict({name: 1.5 * x if "base_layer" in name else x for name, x in net.state_dict().items()})
    yield logits


def in_place(net):
    yield logits
    with torch.no_grad():
        for weight in base_weights(net):
            weight.mul_(0.5)
    yield logits


@pytest.mark.parametrize("change", [merge, unmerge, write_data, load_weights, in_place])
def test_a_frozen_weight_changed_behind_our_back_is_found_in_the_next_call(llama, change):
    net = adapted(llama(), 16)
    changing = change(net)
    read = next(changing)
    read(net), read(net)
    (use,) = anew.statistics(net).baked
    assert use.layers == 2
    before = read(net)
    read = next(changing)
    wanted = read(copy.deepcopy(net).double())
    assert (before - wanted).norm() > 0.01 * wanted.norm()
    for call in range(3):  # from the second call on with new constants
        assert (read(net) - wanted).norm() < 2e-3 * wanted.norm(), call
    found = anew.statistics(net)
    assert (found.stale, found.baked[0].layers) == (2, 2)


def write_one(net):
    """Write one element, where no sample looks."""
    net.base_model.model.model.layers[1].mlp.down_proj.base_layer.weight.data[7, 3] += 0.5


def test_a_write_to_one_element_is_found_when_asked(llama):
    net = adapted(llama(), 16)
    logits(net), logits(net)
    write_one(net)
    with pytest.warns(StaleWarning, match="written through its data"):
        anew.check_baked(net)
    assert anew.statistics(net).stale == 1
    with torch.no_grad():
        wanted = copy.deepcopy(net).double()(input_ids=TOKENS).logits
    assert (logits(net) - wanted).norm() < 2e-3 * wanted.norm()


def test_a_write_to_one_element_is_found_without_being_asked(llama):
    net = adapted(llama(), 16)
    logits(net), logits(net)
    write_one(net)
    with pytest.warns(StaleWarning):
        [logits(net) for _ in range(LOOKS)]


def test_programs_of_old_constants_are_released(llama):
    net = adapted(llama(), 16)
    for _ in range(3):
        with torch.no_grad():
            base_weights(net)[0].mul_(1.1)
        logits(net), logits(net)
    assert anew.statistics(net).programs == 3  # one of inputs for both layers, one of constants for each


def test_where_too_many_programs_are_loaded_weights_stay_inputs(llama):
    net = adapted(llama(), 16)
    device = session_of(net).device
    device.chip = replace(device.chip, loaded_programs=6)
    wanted = losses(net)
    (reason,) = {note for use in anew.statistics(net).baked for note in use.notes}
    assert "programs for constants would be too many: of the 6 loaded programs" in reason
    assert wanted[-1] < wanted[0]


def test_constants_take_no_more_bytes_than_the_chip_maps(llama):
    net = adapted(llama(), 16)
    device = session_of(net).device
    device.chip = replace(device.chip, weight_bytes=20_000)  # enough for the head and for one layer
    logits(net), logits(net)
    (use,) = anew.statistics(net).baked
    assert use.layers == 0
    assert "bytes of constants more would be too many" in use.notes[0]


def test_a_device_without_procedures_takes_a_program_for_each_layer(llama, monkeypatch):
    net = adapted(llama(layers=3), 16)
    monkeypatch.setattr(type(session_of(net).device), "takes_procedures", False)
    logits(net), logits(net)
    (use,) = anew.statistics(net).baked
    assert (use.layers, use.programs) == (3, 3)


@pytest.mark.parametrize("chip", ["m1", "m4"])
def test_where_8_bits_save_nothing_is_said(llama, chip):
    net = adapted(llama(), 8, chip=chip)
    logits(net), logits(net)
    (use,) = anew.statistics(net).baked
    assert use.layers == 2
    assert use.notes == (("m1 makes 8-bit constants fp16 when it compiles",) if chip == "m1" else ())


def test_scales_of_a_checkpoint_serve_both(llama, fresh):
    net = adapted(llama(layers=1), 0)
    losses(net, 2)
    state = anew.state_dict(net)
    fresh()
    other = adapted(llama(layers=1), 16)
    anew.load_state_dict(other, state)
    losses(other, 3)
    assert anew.statistics(other).calibrations == 0


def test_explain_tells_programs_and_bytes(llama):
    net = adapted(llama(layers=3), 8, targets="all-linear")
    found = anew.explain(net, {"input_ids": TOKENS, "labels": TOKENS})
    baked = {p.name: p for p in found.programs if p.constant_bytes}
    assert [p.dispatches for p in baked.values()] == [1, 1, 2, 2]
    weights = sum(w.numel() for w in base_weights(net))
    forward = sum(p.constant_bytes for p in baked.values() if "forward" in p.name)
    assert weights <= forward <= 1.3 * weights  # a byte for each element, and the scales
    assert all(p.operations["conv"] for p in baked.values())
    assert "7 weights of 2 layers are constants of 8 bits in 1 programs" in str(found)
    assert "constants" in str(found)


def test_a_model_without_frozen_weights_is_as_ever(llama):
    net = compiled(llama(), base_bits=16)
    gradients(net), gradients(net)
    assert anew.statistics(net).baked == ()


def test_bits_are_checked():
    with pytest.raises(UserError, match="'base_bits' is one of 0, 8, 16, not 4"):
        Options(base_bits=4)
