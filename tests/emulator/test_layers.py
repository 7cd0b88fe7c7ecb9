"""Layers of the models of transformers, strict: every operation on the engine, gradients against fp64."""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM as Causal
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    ViTConfig,
    ViTForImageClassification,
)

import anew

pytestmark = pytest.mark.usefixtures("fresh")

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_DROPOUT = {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0} | NO_DROPOUT
CAPPED = {"query_pre_attn_scalar": 8, "sliding_window": 8}
MODELS = {
    "llama": lambda: Causal.from_config(LlamaConfig(**SIZES)),
    "qwen2": lambda: Causal.from_config(Qwen2Config(**SIZES)),
    "qwen3": lambda: Causal.from_config(Qwen3Config(**SIZES)),
    "mistral": lambda: Causal.from_config(MistralConfig(**SIZES)),
    "gemma": lambda: Causal.from_config(GemmaConfig(**SIZES)),
    "gemma2": lambda: Causal.from_config(Gemma2Config(**SIZES, **CAPPED)),
    "gemma3": lambda: Causal.from_config(Gemma3TextConfig(**SIZES, **CAPPED)),
    "gpt2": lambda: Causal.from_config(GPT2Config(**GPT2)),
    "vit": lambda: ViTForImageClassification(
        ViTConfig(**{k: SIZES[k] for k in list(SIZES)[:4]}, image_size=8, patch_size=2, num_labels=4)
    ),
}


def loss_of(net, dtype):
    generator = torch.Generator().manual_seed(1)
    if isinstance(net, ViTForImageClassification):
        logits = net(pixel_values=torch.randn(2, 3, 8, 8, generator=generator).to(dtype)).logits
        return F.cross_entropy(logits, torch.tensor([1, 3]))
    tokens = torch.randint(0, 64, (2, 13), generator=generator)
    return F.cross_entropy(net(input_ids=tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())


def gradients(net, dtype):
    net.zero_grad(set_to_none=True)
    loss_of(net, dtype).backward()
    return {name: p.grad.double() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_layers_run_on_the_engine_and_their_gradients_are_those_of_fp64(name):
    torch.manual_seed(0)
    net = MODELS[name]().train()
    wanted = gradients(copy.deepcopy(net).double(), torch.float64)
    anew.compile(net, device="emulator", numerics="exact", strict=True)
    gradients(net, torch.float32)
    found = gradients(net, torch.float32)
    assert not [h for h in anew.statistics(net).host_operations if h.kind == "fallback"]
    largest = max(g.norm() for g in wanted.values())
    for parameter, gradient in wanted.items():
        if gradient.norm() < 1e-9 * largest:  # 0 but for rounding, such as a bias of keys without rotation
            assert found[parameter].norm() < 1e-4 * largest
            continue
        assert F.cosine_similarity(found[parameter].flatten(), gradient.flatten(), 0) >= 0.9999, parameter
        assert (found[parameter] - gradient).norm() <= 0.01 * gradient.norm(), parameter


@pytest.mark.parametrize("name", ["gpt2", "vit"])
def test_rows_of_layer_norm_as_large_as_those_of_trained_models(name):
    """The residual stream of trained models reaches hundreds to thousands: squares of that are beyond fp16."""
    torch.manual_seed(0)
    net = MODELS[name]().train()
    with torch.no_grad():
        for position in (p for n, p in net.named_parameters() if "position_embeddings" in n or "wpe" in n):
            position.normal_(0, 1).mul_(1000.0)
    wanted = gradients(copy.deepcopy(net).double(), torch.float64)
    anew.compile(net, device="emulator", strict=True)
    gradients(net, torch.float32)
    found = gradients(net, torch.float32)
    judged = [n for n in wanted if "mlp" in n and "weight" in n]
    assert len(judged) == 4
    for parameter in judged:
        assert (found[parameter] - wanted[parameter]).norm() <= 0.02 * wanted[parameter].norm(), parameter
