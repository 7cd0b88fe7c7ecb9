"""Frozen weights as constants of lean programs: equal to inputs, within the chip's budgets, and never out of date."""

import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

import anew
from anew.compiler.bake import quantize
from anew.errors import UserError
from anew.frontend.baking import NO_LEAN
from anew.frontend.model import session_of
from anew.frontend.options import Options
from anew.frontend.scales import FIRST, INTERVAL, weight_exponent
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


def dispatches(net):
    return session_of(net).counts.dispatches


def logits(net):
    with torch.no_grad():
        return net(input_ids=TOKENS).logits + 0.0


def measured(net, call=logits):
    """The model, after the calls that measure: the next ones are of constants."""
    for _ in range(FIRST):
        call(net)
    return net


def base_weights(net):
    return [m.base_layer.weight for m in net.modules() if hasattr(m, "base_layer")]


def layers_baked(net):
    return [use.layers for use in anew.statistics(net).baked]


@pytest.mark.parametrize("factor", [1.0, 1e-3], ids=["products without scales", "products with scales"])
def test_convolutions_with_constants_agree_with_matmuls_of_inputs_bit_for_bit(llama, fresh, factor):
    found = {}
    for bits in (0, 16):
        net = llama()
        with torch.no_grad():
            for layer in net.model.layers:
                layer.mlp.down_proj.weight.mul_(factor)
        net = adapted(net, bits, numerics="exact", chip="m4")
        measured(measured(net, gradients))
        found[bits] = {**gradients(net), "logits": logits(net)}
        layers = layers_baked(net)
        fresh()
    assert layers == [1, 1, 1, 1, 2]  # forward and backward, the first layer by itself; evaluation
    for name, wanted in found[0].items():
        assert torch.equal(found[16][name], wanted), name


def test_eight_bits_are_eight_bits_from_the_first_call_on(llama, fresh):
    """Inputs have the numbers of the constants, so it does not matter which of the two a call takes."""
    net = adapted(llama(), 8, numerics="exact", chip="m4")
    first = logits(net)
    found = logits(measured(net))
    assert layers_baked(net) == [2]
    assert (found - first).norm() < 2e-3 * first.norm()
    fresh()
    other = adapted(llama(), 8, numerics="exact", chip="m4")
    device = session_of(other).device
    device.chip = replace(device.chip, weight_bytes=1000)
    logits(measured(other))
    assert torch.equal(logits(other), found)
    assert layers_baked(other) == [0]
    assert [plan.name for plan in session_of(other).lean_plans] == ["region 1 inference"]


def test_calls_that_measure_take_inputs_and_those_between_constants(llama):
    net = adapted(llama(layers=1), 16)
    names = "region 1 inference", "region 1 inference baked"
    runs = []
    for _ in range(2 * INTERVAL + 2):
        before = dispatches(net).copy()
        logits(net)
        runs.append([dispatches(net)[name] > before[name] for name in names])
    inputs = [*range(FIRST), INTERVAL, 2 * INTERVAL]
    assert runs == [[i in inputs, i not in inputs] for i in range(2 * INTERVAL + 2)]
    assert session_of(net).lean_plans == []
    assert anew.statistics(net).programs == 2


def test_steps_of_training_run_constants(llama):
    net = adapted(llama(layers=3), 16)
    losses(net, FIRST)
    before = dispatches(net).copy()
    losses(net, 2)
    of_layers = {name: n for name, n in (dispatches(net) - before).items() if "loss" not in name}
    assert sorted(of_layers) == [
        f"region {i} {direction} baked" for i in (1, 2) for direction in ("backward", "forward")
    ]
    assert sorted(of_layers.values()) == [2, 2, 4, 4]
    assert anew.statistics(net).rescaled == 0


def shrink_plain(net):
    """Let one layer say that all its products need scales."""
    scales = session_of(net).scales
    next(iter(scales.states())).plain = []
    scales._plain.clear()


def test_where_fewer_products_do_without_scales_all_layers_are_baked_again(llama, fresh):
    net = adapted(llama(), 16, numerics="exact", chip="m4")
    first = logits(measured(net))
    (bank,) = session_of(net).banks
    assert (layers_baked(net), anew.statistics(net).programs) == ([2], 2)
    assert bank.form.plan.scales.plain
    shrink_plain(net)
    before = dispatches(net).copy()
    logits(net)
    assert dispatches(net) - before == {"region 1 inference": 2}
    assert (layers_baked(net), anew.statistics(net).programs) == ([0], 1)  # the old ones are released
    again = logits(net)
    assert dispatches(net) - before == {"region 1 inference": 2, "region 1 inference baked": 2}
    assert (layers_baked(net), anew.statistics(net).programs) == ([2], 2)
    assert not bank.form.plan.scales.plain
    assert anew.statistics(net).stale == 0
    fresh()
    other = measured(adapted(llama(), 0, numerics="exact", chip="m4"))
    assert torch.equal(logits(other), first)
    shrink_plain(other)
    assert torch.equal(logits(other), again)


def test_where_there_is_no_room_to_bake_again_lean_programs_take_inputs(llama):
    net = adapted(llama(), 16)
    logits(measured(net))
    device = session_of(net).device
    device.chip = replace(device.chip, weight_bytes=1000)
    shrink_plain(net)
    logits(net), logits(net)  # the first layer is to bake them all in the second
    (use,) = anew.statistics(net).baked
    assert (use.layers, use.programs, anew.statistics(net).programs) == (0, 0, 2)
    assert "bytes of constants more would be too many" in use.notes[0]
    before = dispatches(net).copy()
    logits(net)
    assert dispatches(net) - before == {"region 1 inference": 2}
    assert [plan.scales.plain for plan in session_of(net).lean_plans] == [frozenset()]


def test_a_weight_that_came_to_need_an_exponent_has_one_in_new_constants(llama):
    net = adapted(llama(), 16)
    logits(measured(net))
    (bank,) = session_of(net).banks
    plain = bank.form.plan.scales.plain
    with torch.no_grad():
        base_weights(net)[0].mul_(1e-3)
    wanted = logits(copy.deepcopy(net).double())
    for _ in range(4):
        assert (logits(net) - wanted).norm() < 2e-3 * wanted.norm()
    assert bank.form.plan.scales.plain < plain
    assert layers_baked(net) == [2]
    assert anew.statistics(net).rescaled == 0


def test_weights_changed_before_a_call_that_measures_are_found(llama):
    net = adapted(llama(), 16)
    for _ in range(INTERVAL):
        logits(net)
    assert layers_baked(net) == [2]
    with torch.no_grad():
        for weight in base_weights(net):
            weight.mul_(1.5)
    wanted = logits(copy.deepcopy(net).double())
    before = dispatches(net).copy()
    assert (logits(net) - wanted).norm() < 2e-3 * wanted.norm()
    assert anew.statistics(net).stale == 2
    assert (logits(net) - wanted).norm() < 2e-3 * wanted.norm()
    assert dispatches(net) - before == {"region 1 inference": 2, "region 1 inference baked": 2}


def test_without_scaling_there_are_no_lean_programs_to_bake(llama):
    net = adapted(llama(), 16, scaling="none")
    found = logits(measured(net))
    (use,) = anew.statistics(net).baked
    assert (use.layers, use.notes) == (0, (NO_LEAN,))
    wanted = logits(copy.deepcopy(net).double())
    assert (found - wanted).norm() < 0.01 * wanted.norm()


def test_losses_of_constants_are_those_of_inputs(llama, fresh):
    wanted = losses(adapted(llama(layers=1), 0), FIRST + 3)
    for bits, most in ((16, 0.005), (8, 0.02)):
        fresh()
        net = adapted(llama(layers=1), bits)
        found = losses(net, FIRST + 3)
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
    found = gradients(measured(net, gradients))
    assert all(layers_baked(net))
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 0.01 * gradient.norm(), name


def test_training_evaluation_and_generation_keep_to_a_few_programs(llama):
    net = adapted(llama(layers=4), 8, chip="m4")
    losses(net, FIRST + 1)
    logits(measured(net.eval()))
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
    before = read(measured(net, read))
    (use,) = anew.statistics(net).baked
    assert use.layers == 2
    read = next(changing)
    wanted = read(copy.deepcopy(net).double())
    assert (before - wanted).norm() > 0.01 * wanted.norm()
    for call in range(FIRST + 1):  # from the second call on with new constants, if the program is not new
        assert (read(net) - wanted).norm() < 2e-3 * wanted.norm(), call
    found = anew.statistics(net)
    assert (found.stale, found.baked[0].layers) == (2, 2)


def write_one(net):
    """Write one element, where no sample looks, and the looks at tenths come last."""
    net.base_model.model.model.layers[1].mlp.down_proj.base_layer.weight.data[-1, -1] += 0.5


def test_a_write_to_one_element_is_found_when_asked(llama):
    net = adapted(llama(), 16)
    logits(measured(net))
    write_one(net)
    with pytest.warns(StaleWarning, match="written through its data"):
        anew.check_baked(net)
    assert anew.statistics(net).stale == 1
    with torch.no_grad():
        wanted = copy.deepcopy(net).double()(input_ids=TOKENS).logits
    assert (logits(net) - wanted).norm() < 2e-3 * wanted.norm()


def test_a_write_to_one_element_is_found_without_being_asked(llama):
    net = adapted(llama(), 16)
    logits(measured(net))
    write_one(net)
    with pytest.warns(StaleWarning):
        [logits(net) for _ in range(LOOKS)]


def test_programs_of_old_constants_are_released(llama):
    net = measured(adapted(llama(), 16))
    for _ in range(3):
        with torch.no_grad():
            base_weights(net)[0].mul_(1.1)
        logits(net), logits(net)
    assert anew.statistics(net).programs == 3  # one of inputs for both layers, one of constants for each


def test_where_too_many_programs_are_loaded_weights_stay_inputs(llama):
    net = adapted(llama(), 16)
    device = session_of(net).device
    device.chip = replace(device.chip, loaded_programs=6)
    wanted = losses(net, FIRST + 1)
    (reason,) = {note for use in anew.statistics(net).baked for note in use.notes}
    assert "programs for constants would be too many: of the 6 loaded programs" in reason
    assert wanted[-1] < wanted[0]


def test_constants_take_no_more_bytes_than_the_chip_maps(llama):
    net = adapted(llama(), 16)
    device = session_of(net).device
    device.chip = replace(device.chip, weight_bytes=20_000)  # enough for the head and for one layer
    logits(measured(net))
    (use,) = anew.statistics(net).baked
    assert use.layers == 0
    assert "bytes of constants more would be too many" in use.notes[0]


def test_a_device_without_procedures_takes_a_program_for_each_layer(llama, monkeypatch):
    net = adapted(llama(layers=3), 16)
    monkeypatch.setattr(type(session_of(net).device), "takes_procedures", False)
    logits(measured(net))
    (use,) = anew.statistics(net).baked
    assert (use.layers, use.programs) == (3, 3)


@pytest.mark.parametrize("chip", ["m1", "m4"])
def test_where_8_bits_save_nothing_is_said(llama, chip):
    net = adapted(llama(), 8, chip=chip)
    logits(measured(net))
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
    gradients(measured(net, gradients))
    assert anew.statistics(net).baked == ()


def test_bits_are_checked():
    with pytest.raises(UserError, match="'base_bits' is one of 0, 8, 16, not 4"):
        Options(base_bits=4)
