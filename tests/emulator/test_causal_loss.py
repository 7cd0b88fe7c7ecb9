"""The loss region in causal language models of transformers: taken where it is theirs, left where it is not."""

import copy
import io
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.loss.loss_utils import ForCausalLMLoss

import anew
from anew.chips import load_chip
from anew.device.emulator.engine import EmulatedEngine
from anew.errors import AnewError
from anew.frontend.loss.check import check
from anew.frontend.loss.deferred import DeferredLogits
from anew.frontend.loss.next_token import NextToken
from anew.frontend.loss.region import LossRegion
from anew.frontend.options import Options
from anew.frontend.session import Session

pytestmark = [
    pytest.mark.usefixtures("fresh"),
    pytest.mark.filterwarnings("ignore::anew.frontend.placement.PlacementWarning"),
]

TOKENS = torch.randint(0, 64, (2, 13), generator=torch.Generator().manual_seed(7))
LABELS = TOKENS.clone()
LABELS[0, :4] = LABELS[1, -3:] = -100
BATCH = {"input_ids": TOKENS, "labels": LABELS}

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 64,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_DROPOUT = {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}

MODELS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, **NO_DROPOUT)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=3.0)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)),
}


def make(name):
    torch.manual_seed(0)
    return MODELS[name]()


def gradients(net, **batch):
    net.zero_grad(set_to_none=True)
    loss = net(**batch).loss
    loss.backward()
    return loss.double().item(), {n: p.grad.double() for n, p in net.named_parameters() if p.grad is not None}


def assert_like_fp64(net, error=0.02, **batch):
    """Compile the model; loss and every gradient are those of fp64, in the first and in the second step."""
    batch = batch or BATCH
    loss, wanted = gradients(copy.deepcopy(net).double(), **batch)
    anew.compile(net, device="emulator")
    for _ in range(2):
        found_loss, found = gradients(net, **batch)
        assert found_loss == pytest.approx(loss, rel=2e-3)
        assert found.keys() == wanted.keys()
        for name, want in wanted.items():
            assert (found[name] - want).norm() <= error * want.norm(), name
    return anew.statistics(net).loss


@pytest.mark.parametrize("tied", [False, True])
def test_llama(llama, tied):
    assert assert_like_fp64(llama(tie_word_embeddings=tied)).used


@pytest.mark.parametrize("name", ["qwen2", "mistral", "gpt2"])
def test_models_whose_loss_it_is(name):
    assert assert_like_fp64(make(name)).used


@pytest.mark.parametrize("name", ["gemma2", "granite"])
def test_caps_and_scales_of_logits_stay_the_models_own(name):
    verdict = assert_like_fp64(make(name))
    assert verdict.used is False
    assert "changes its logits" in verdict.reason


def test_what_the_trainer_passes(llama):
    net = llama()
    gradients(anew.compile(net), **BATCH)
    for further in (
        {"num_items_in_batch": torch.tensor(50)},
        {"num_items_in_batch": 7},
        {"ignore_index": 5, "labels": TOKENS},
        {"shift_labels": LABELS.roll(-2, 1)},
    ):
        loss, wanted = gradients(copy.deepcopy(net).double(), **BATCH | further)
        found_loss, found = gradients(net, **BATCH | further)
        assert found_loss == pytest.approx(loss, rel=2e-3), further
        assert all((found[n] - wanted[n]).norm() <= 0.02 * wanted[n].norm() for n in wanted), further


def test_smoothed_labels_fail_the_check(llama):
    def smoothed(logits, labels, vocab_size, **kwargs):
        target = NextToken(labels).target()
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), label_smoothing=0.01)

    net = llama()
    net.loss_function = smoothed
    verdict = assert_like_fp64(net)
    assert verdict.used is False
    assert "differ" in verdict.reason


def test_labels_that_are_not_shifted_fail_the_check(llama):
    net = llama()
    net.loss_function = lambda logits, labels, **_: F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert assert_like_fp64(net).used is False


def test_a_batch_without_labels_decides_nothing(llama):
    net = anew.compile(llama())
    assert net(input_ids=TOKENS, labels=torch.full_like(TOKENS, -100)).loss.isnan()
    assert anew.statistics(net).loss.used is None
    net(**BATCH)
    assert anew.statistics(net).loss.used is True
    assert net(input_ids=TOKENS, labels=torch.full_like(TOKENS, -100)).loss.isnan()


def test_long_batches_are_checked_in_part(llama):
    tokens = torch.randint(0, 64, (2, 300), generator=torch.Generator().manual_seed(1))
    assert assert_like_fp64(llama(max_position_embeddings=512), input_ids=tokens, labels=tokens).used


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation(llama, mode):
    net = llama().eval()
    wanted = copy.deepcopy(net).double()(**BATCH)
    anew.compile(net)
    with mode():
        out = net(input_ids=TOKENS.clone(), labels=LABELS.clone())
    assert anew.statistics(net).loss.used
    assert out.loss.item() == pytest.approx(wanted.loss.item(), rel=1e-3)
    assert (out.logits - wanted.logits).norm() < 5e-3 * wanted.logits.norm()
    assert not out.logits.requires_grad


def test_logits_are_computed_when_something_reads_them(llama):
    net = llama()
    wanted = copy.deepcopy(net).double()
    anew.compile(net)
    out = net(**BATCH)
    assert isinstance(out.logits, DeferredLogits)
    assert (out.logits.shape, out.logits.dtype, len(out.logits.size())) == ((2, 13, 64), torch.float32, 3)
    assert not out.logits.is_computed
    chosen = out.logits[:, -1]
    assert type(chosen) is torch.Tensor
    reference = wanted(**BATCH).logits[:, -1]
    assert (chosen - reference).norm() < 5e-3 * reference.norm()
    (out.loss + chosen.square().sum()).backward()  # both reach the weights
    whole = wanted(**BATCH)
    (whole.loss + whole.logits[:, -1].square().sum()).backward()
    weight = wanted.lm_head.weight.grad
    assert (net.lm_head.weight.grad - weight).norm() < 0.02 * weight.norm()


def test_without_labels_logits_are_what_they_were(llama):
    net = llama()
    wanted = copy.deepcopy(net).double()(input_ids=TOKENS).logits
    found = anew.compile(net)(input_ids=TOKENS).logits
    assert (torch.stack([found, found]).mean(0) - wanted).norm() < 5e-3 * wanted.norm()
    assert torch.as_tensor(found.detach().numpy()).equal(found)


def test_logits_read_after_a_step_are_an_error(llama):
    net = anew.compile(llama())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    out = net(**BATCH)
    out.loss.backward()
    optimizer.step()
    with pytest.raises(AnewError, match="the head's weight has changed since"):
        out.logits.argmax(-1)


def test_logits_to_keep_is_the_models_own_business(llama):
    net = anew.compile(llama())
    shift = LABELS[:, -3:].contiguous()
    wanted = copy.deepcopy(net).double()(**BATCH, shift_labels=shift, logits_to_keep=3).loss
    assert net(**BATCH, shift_labels=shift, logits_to_keep=3).loss.item() == pytest.approx(wanted.item(), rel=1e-3)


def test_loss_apart(llama):
    net = anew.compile(llama(), loss="apart")
    assert type(net(**BATCH).logits) is torch.Tensor
    assert anew.statistics(net).loss is None


def test_a_head_that_is_no_linear_layer_stays_apart(llama):
    from peft import LoraConfig, get_peft_model

    net = get_peft_model(llama(), LoraConfig(target_modules=["q_proj", "lm_head"]))
    verdict = assert_like_fp64(net, error=0.05)
    assert verdict.used is False
    assert "fp32 nn.Linear" in verdict.reason


def next_token_loss(logits, labels, shift_labels):
    return ForCausalLMLoss(logits, labels, vocab_size=64)


def test_a_head_that_the_chip_does_not_take_stays_apart():
    session = Session(Options())
    session.device = EmulatedEngine(replace(load_chip("m4"), max_axis=1024))
    head = nn.Linear(1025, 64, bias=False)
    verdict = check(LossRegion(session), next_token_loss, NextToken(LABELS), torch.randn(2, 13, 1025), head)
    assert verdict.used is False
    assert "m4 takes 1 to 1024" in verdict.reason


def test_an_engine_that_computes_something_else_fails_the_check(monkeypatch):
    region = LossRegion(Session(Options()))
    losses = region.losses
    monkeypatch.setattr(region, "losses", lambda *a, **k: (losses(*a, **k)[0] * 1.1, *losses(*a, **k)[1:]))
    verdict = check(region, next_token_loss, NextToken(LABELS), torch.randn(2, 13, 32), nn.Linear(32, 64, bias=False))
    assert verdict.used is False
    assert "on the engine differ" in verdict.reason


def test_adapters_with_a_frozen_head(llama):
    from peft import LoraConfig, get_peft_model

    net = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"]))
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.02)
    assert assert_like_fp64(net, error=0.05).used


def test_copies_and_pickles_are_plain_models(llama):
    net = anew.compile(llama())
    wanted = net(**BATCH).loss.item()
    stored = io.BytesIO()
    torch.save(net, stored)
    stored.seek(0)
    for other in (copy.deepcopy(net), torch.load(stored, weights_only=False)):
        with torch.no_grad():
            other.lm_head.weight.mul_(2)
        logits = F.linear(other.model(TOKENS).last_hidden_state, other.lm_head.weight)
        own = F.cross_entropy(logits.flatten(0, 1), NextToken(LABELS).target().flatten())
        assert other(**BATCH).loss.item() == pytest.approx(own.item(), rel=1e-6)
        assert net(**BATCH).loss.item() == pytest.approx(wanted, rel=1e-6)


def test_state_dict_and_saved_model_are_unchanged(llama, tmp_path):
    net = llama()
    keys = list(net.state_dict())
    anew.compile(net)(**BATCH)
    assert list(net.state_dict()) == keys
    net.save_pretrained(tmp_path)
    again = type(net).from_pretrained(tmp_path)
    assert again.lm_head.weight.equal(net.lm_head.weight)


def test_generation(llama):
    net = llama().eval()
    wanted = net.generate(TOKENS, max_new_tokens=2, do_sample=False, use_cache=False, pad_token_id=0)
    anew.compile(net)
    net(**BATCH)
    found = net.generate(TOKENS, max_new_tokens=2, do_sample=False, use_cache=False, pad_token_id=0)
    assert found.equal(wanted)


def test_a_compiled_whole_model_computes_plain_logits(llama):
    net = llama(layers=1)
    wanted = copy.deepcopy(net).double()(**BATCH).loss.item()
    anew.compile(net)
    found = torch.compile(net, backend="eager")(**BATCH)
    assert found.loss.item() == pytest.approx(wanted, rel=1e-3)


def test_training_learns_and_stays_on_the_engine(llama):
    net = anew.compile(llama(tie_word_embeddings=True), strict=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = net(**BATCH).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert anew.statistics(net).loss.used
