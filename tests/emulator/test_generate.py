"""``model.generate`` of transformers on a compiled model: the tokens of plain PyTorch, in few programs."""

import copy
import logging
import warnings

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

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
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 0,
}
#: Largest difference of a logit from plain PyTorch; the logits reach 3 to 5.
TOLERANCE = 0.03

#: Configuration of each family, and a seed whose best two logits lie further apart than twice the tolerance.
MODELS = {
    "llama": ("LlamaConfig", 24, {}),
    "qwen3": ("Qwen3Config", 16, {}),
    "mistral": ("MistralConfig", 22, {"sliding_window": 8}),
    "gemma2": ("Gemma2Config", 10, {"sliding_window": 8, "query_pre_attn_scalar": 8}),
    "gemma3": (
        "Gemma3TextConfig",
        10,
        {
            "sliding_window": 8,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gpt2": ("GPT2Config", 6, {"num_key_value_heads": 4}),
}


def build(name="llama", seed=None, **changes):
    """A plain model of a family, and a copy of it, compiled."""
    config, usual_seed, own = MODELS[name]
    torch.manual_seed(usual_seed if seed is None else seed)
    plain = AutoModelForCausalLM.from_config(getattr(transformers, config)(**(SIZES | own | changes))).eval()
    return plain, anew.compile(copy.deepcopy(plain), device="emulator", strict=name != "gpt2")


def prompt(length=12, batch=2, seed=0):
    return torch.randint(1, 64, (batch, length), generator=torch.Generator().manual_seed(seed))


def same(plain, compiled, ids, seed=0, **arguments):
    """Whether both models generate the same tokens."""
    results = []
    for model in (plain, compiled):
        torch.manual_seed(seed)
        results.append(model.generate(ids, **({"max_new_tokens": 8} | arguments)))
    return torch.equal(*results)


@pytest.mark.filterwarnings("ignore::anew.frontend.placement.PlacementWarning")
@pytest.mark.parametrize("name", MODELS)
def test_tokens_and_logits_of_each_family(name):
    plain, compiled = build(name)
    arguments = {"max_new_tokens": 12, "output_logits": True, "return_dict_in_generate": True}
    expected, got = (m.generate(prompt(), **arguments) for m in (plain, compiled))
    assert torch.equal(got.sequences, expected.sequences)
    logits = torch.stack(expected.logits)
    torch.testing.assert_close(torch.stack(got.logits), logits, atol=TOLERANCE, rtol=0)
    best, second = logits.topk(2).values.unbind(-1)
    assert (best - second).min() > 2 * TOLERANCE  # no tie whose outcome rounding decides
    assert anew.statistics(compiled).regions == 2


def test_24_layers_take_three_programs_and_no_eager_layer(caplog, monkeypatch):
    """20 tokens: each of 24 layers runs the prompt's program once, and the two for single tokens 19 times."""
    plain, compiled = build(seed=6, num_hidden_layers=24, initializer_range=0.1)
    for name in ("torch", "torch._dynamo"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)  # or caplog would not see them
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(plain, compiled, prompt(), max_new_tokens=20)
    counts = anew.statistics(compiled)
    assert (counts.programs, counts.regions, counts.dispatches - counts.calibrations) == (3, 2, 24 * 20)
    assert not [record for record in caplog.records if record.name.startswith("torch")]


def test_ways_to_decode_share_programs():
    plain, compiled = build()
    ids = prompt()
    visible = torch.ones_like(ids)
    visible[0, :5] = 0
    assert same(plain, compiled, ids)
    assert same(plain, compiled, ids, attention_mask=visible)
    assert same(plain, compiled, ids, do_sample=True, seed=3)
    assert same(plain, compiled, prompt(5, seed=1))
    assert same(plain, compiled, ids[:1], num_beams=2)
    assert same(plain, compiled, ids[:1], do_sample=True, num_return_sequences=2)
    assert anew.statistics(compiled).programs == 4  # for a prompt and a token, each with its lean one
    assert same(plain, compiled, ids, num_beams=3, num_return_sequences=2, attention_mask=visible)
    assert anew.statistics(compiled).programs == 7  # six rows instead of two: of one prompt


def test_assisted_decoding_crops_the_cache():
    plain, compiled = build(seed=42)  # the best two logits of both prompts lie 0.7 apart
    assistant, _ = build(seed=1)
    ids = prompt(batch=1)
    assert same(plain, compiled, ids, assistant_model=assistant)
    assert same(plain, compiled, ids.repeat(1, 3), prompt_lookup_num_tokens=3)


def test_a_cache_outgrows_its_bucket():
    plain, compiled = build(num_hidden_layers=1)
    assert same(plain, compiled, prompt(60, batch=1), max_new_tokens=8)
    assert anew.statistics(compiled).programs == 4  # the prompt, a token in each bucket, lean in the larger one


def test_a_conversation_goes_on_from_its_cache():
    plain, compiled = build()
    conversations = []
    for model in (plain, compiled):
        cache, ids = DynamicCache(config=model.config), prompt(batch=1)
        for turn in range(3):
            answer = model.generate(ids, past_key_values=cache, max_new_tokens=5, return_dict_in_generate=True)
            assert answer.past_key_values is cache
            ids = torch.cat([answer.sequences, prompt(4, batch=1, seed=turn)], dim=1)
        conversations.append(ids)
    assert torch.equal(*conversations)
    assert anew.statistics(compiled).programs == 4  # the first prompt, a token and its lean one, a later prompt


def test_generating_does_not_disturb_training():
    """Losses of a run with samples in between are those of a run without, bit for bit; samples follow the weights."""
    losses, samples = [], []
    tokens = prompt(16, seed=5)
    for sampling in (False, True):
        plain, compiled = build()
        optimizer = torch.optim.AdamW(compiled.parameters(), lr=1e-2)
        curve = []
        for _ in range(4):
            loss = compiled(input_ids=tokens, labels=tokens).loss
            loss.backward()
            if sampling:
                samples.append(compiled.generate(prompt(), max_new_tokens=4))
            optimizer.step()
            optimizer.zero_grad()
            curve.append(loss.item())
        losses.append(curve)
    assert losses[0] == losses[1]
    assert not torch.equal(samples[0], samples[-1])
    plain.load_state_dict(compiled.state_dict())
    assert same(plain, compiled, prompt())


def test_a_plain_forward_makes_no_cache():
    _, compiled = build(num_hidden_layers=1)
    with torch.no_grad():
        assert compiled(prompt()).past_key_values is None
        assert compiled(prompt(), use_cache=True).past_key_values.get_seq_length() == 12


def test_gradients_through_a_cache():
    """A prefix that training adjusts, and every parameter, against fp64."""
    plain, compiled = build()
    gradients = []
    for model, dtype in ((plain.double(), torch.float64), (compiled, torch.float32)):
        torch.manual_seed(1)
        prefix = torch.randn(2, 2, 2, 2, 5, 8, dtype=torch.float64).to(dtype).requires_grad_()
        cache = DynamicCache([tuple(layer) for layer in prefix])
        model(input_ids=prompt(), labels=prompt(), past_key_values=cache).loss.backward()
        gradients.append([prefix.grad, *[p.grad for p in model.parameters()]])
    for expected, got in zip(*gradients, strict=True):
        assert torch.cosine_similarity(expected.flatten(), got.double().flatten(), dim=0) > 0.9995
        assert (got.double() - expected).norm() < 0.03 * expected.norm()
