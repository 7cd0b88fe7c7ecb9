"""The attention forms of transformers: eager and sdpa, grouped, normed, windowed, capped, padded left and right."""

import pytest
import torch
import transformers

import anew
from anew.frontend.options import Options
from anew.frontend.session import session_for

pytestmark = pytest.mark.usefixtures("fresh")

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "use_cache": False,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT2 = {
    "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 32, "use_cache": False,
    "resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip

MODELS = {
    "llama": ("Llama", GROUPED),
    "llama, biases": ("Llama", GROUPED | {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", GROUPED | {"head_dim": 8}),
    "mistral": ("Mistral", GROUPED | {"sliding_window": 4}),
    "gemma2": ("Gemma2", GROUPED | {"head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 2.0}),
    "gemma3": (
        "Gemma3Text",
        GROUPED | {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gpt2": ("GPT2", GPT2),
    "gpt2, scaled by layer": ("GPT2", GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "bert": ("Bert", SIZES | NO_DROPOUT),
}
LENGTH = 9
PADDING = {"none": None, "left": torch.arange(LENGTH) >= 3, "right": torch.arange(LENGTH) < 6}


def make(name, implementation):
    family, sizes = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**sizes, attn_implementation=implementation)
    torch.manual_seed(0)
    return getattr(transformers, f"{family}Model")(config).train()


def step(net, padding):
    """Hidden states where there are tokens, all hidden states, and gradients of the parameters that have one."""
    seen = torch.ones(2, LENGTH, dtype=torch.bool)
    if padding is not None:
        seen[0] = padding
    tokens = torch.randint(1, 64, (2, LENGTH), generator=torch.Generator().manual_seed(1)) * seen
    given = {} if padding is None else {"attention_mask": seen.long()}
    hidden = net(input_ids=tokens, **given).last_hidden_state
    cotangent = torch.randn(2, LENGTH, 32, generator=torch.Generator().manual_seed(2)) * 1e-3
    (hidden * cotangent.to(hidden.dtype))[seen].sum().backward()
    gradients = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    return hidden.detach()[seen], hidden.detach(), gradients


def wanted_of(name, implementation, padding):
    # transformers' eager attention overflows to NaN in fp64 in rows without a visible key; fp32 is its own word there
    net = make(name, implementation)
    return step(net if implementation == "eager" and padding is PADDING["left"] else net.double(), padding)


FORMS = [
    (name, form)
    for name in MODELS
    for form in ("eager", "sdpa")
    if (name, form) != ("gemma2", "sdpa")  # which transformers refuses, for the soft cap
]


@pytest.mark.parametrize(("name", "implementation"), FORMS)
def test_values_and_gradients(name, implementation):
    net = anew.compile(make(name, implementation), device="emulator", strict=True)
    for padding in PADDING:
        if (padding == "left" or "," not in name) and (padding != "none" or name in ("llama", "gpt2")):
            check_step(net, name, implementation, padding)
    assert {h.kind for h in anew.statistics(net).host_operations} <= {"boundary"}


def check_step(net, name, implementation, padding):
    net.zero_grad()
    seen, every, gradients = step(net, PADDING[padding])
    wanted, _, references = wanted_of(name, implementation, PADDING[padding])
    assert every.isfinite().all(), padding
    assert (seen - wanted).norm() <= 3e-3 * wanted.norm(), padding
    assert gradients.keys() == references.keys()
    largest = max(r.norm() for r in references.values())
    for at, reference in references.items():
        if reference.norm() > 1e-6 * largest:  # a key's bias has none: softmax does not see it
            assert (gradients[at] - reference).norm() <= 1e-2 * reference.norm(), (padding, at)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_images_without_masks(implementation):
    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=8, patch_size=4,
        attn_implementation=implementation, **NO_DROPOUT,
    )  # fmt: skip
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def gradients(compile):
        torch.manual_seed(0)
        net = compile(transformers.ViTModel(config, add_pooling_layer=False).train())
        hidden = net(pixel_values=pixels.to(next(net.parameters()).dtype)).last_hidden_state
        (hidden * torch.linspace(-1, 1, 32)).sum().backward()
        return {n: p.grad for n, p in net.named_parameters()}

    found = gradients(lambda net: anew.compile(net, device="emulator", strict=True))
    references = gradients(lambda net: net.double())
    largest = max(r.norm() for r in references.values())
    for at, reference in references.items():
        if reference.norm() > 1e-6 * largest:
            assert (found[at] - reference).norm() <= 1e-2 * reference.norm(), at


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("padding", ["none", "right"])
def test_grouped_queries_share_their_keys(implementation, padding):
    net = anew.compile(make("llama", implementation), device="emulator")
    step(net, PADDING[padding])
    plans = session_for(Options(device="emulator")).plans
    assert len(plans) == 2
    assert not any("tile" in plan.operations for plan in plans)


def test_attention_for_other_devices_is_refused():
    with pytest.raises(anew.UserError, match="'flex_attention' is made for GPUs; load the model with 'sdpa'"):
        anew.compile(make("llama", "flex_attention"), device="emulator")
    with pytest.raises(ImportError, match="FlashAttention2"):  # transformers' own sentence
        make("llama", "flash_attention_2")
