"""Layers behind padded caches compute what they compute with transformers' own; no engine here."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, MistralConfig, MistralForCausalLM, StaticCache
from transformers.cache_utils import EncoderDecoderCache

from anew.errors import UserError
from anew.frontend.cache import SMALLEST_BUCKET, LayerCache, bucket, with_fixed_sizes


def pair(attention, window):
    """A model, and the same one with its layers' caches padded, without a compiler between."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": window}
    config = MistralConfig(**sizes, **heads, max_position_embeddings=512, attn_implementation=attention)
    plain = MistralForCausalLM(config).eval()
    padded = copy.deepcopy(plain)
    for layer in padded.model.layers:
        layer._compiled_call_impl = with_fixed_sizes(layer, layer._call_impl)
    return plain, padded


@given(length=st.integers(1, 10_000))
def test_buckets_are_powers_of_two_that_hold_the_length(length):
    size = bucket(length)
    assert size >= length
    assert size & (size - 1) == 0
    assert size == SMALLEST_BUCKET or size < 2 * length


@settings(deadline=None, max_examples=25)
@given(
    attention=st.sampled_from(["eager", "sdpa"]),
    window=st.sampled_from([None, 8, 70]),
    batch=st.integers(1, 2),
    calls=st.lists(st.sampled_from([1, 1, 2, 5, 70]), min_size=1, max_size=5),
    padding=st.integers(0, 3),
    recording=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_padded_calls_give_the_same_logits_and_cache(attention, window, batch, calls, padding, recording, seed):
    """Tokens fed in several calls: left padding in one row, any window, caches that keep more than it shows."""
    plain, padded = pair(attention, window)
    tokens = torch.randint(0, 32, (batch, sum(calls)), generator=torch.Generator().manual_seed(seed))
    visible = torch.ones_like(tokens)
    visible[0, : min(padding, calls[0] - 1)] = 0
    caches = [DynamicCache(config=plain.config) for _ in range(2)]
    if recording:  # as assisted decoding does, to take tokens back
        for cache in caches:
            cache.activate_past_recording()
    seen = 0
    for count in calls:
        step = {"input_ids": tokens[:, seen : seen + count], "attention_mask": visible[:, : seen + count]}
        with torch.no_grad():
            expected, got = (m(**step, past_key_values=c).logits for m, c in zip((plain, padded), caches, strict=True))
        real = visible[:, seen : seen + count].bool()
        torch.testing.assert_close(got[real], expected[real], atol=1e-5, rtol=1e-4)
        seen += count
    for theirs, ours in zip(caches[0].layers, caches[1].layers, strict=True):
        assert ours.keys.shape == theirs.keys.shape
        assert ours.get_seq_length() == theirs.get_seq_length() == seen


def test_layers_see_few_shapes():
    """One for prompts up to a bucket, one for every token after it, one more past the bucket."""
    _, padded = pair("sdpa", None)
    shapes = set()
    inner = padded.model.layers[0]._call_impl

    def recording(hidden, **arguments):
        (past,) = (x.past for x in arguments.values() if isinstance(x, LayerCache))  # its name varies with transformers
        shapes.add((hidden.shape, arguments["attention_mask"].shape, past and past[0].shape))
        return inner(hidden, **arguments)

    padded.model.layers[0]._compiled_call_impl = with_fixed_sizes(padded.model.layers[0], recording)
    for prompt, new in ((5, 60), (64, 1), (17, 9)):
        padded.generate(torch.ones(1, prompt, dtype=torch.long), max_new_tokens=new, eos_token_id=None)
    assert len(shapes) == 2
    padded.generate(torch.ones(1, 60, dtype=torch.long), max_new_tokens=8, eos_token_id=None)
    assert len(shapes) == 3


def test_gradients_reach_a_prefix():
    """Prefix tuning: keys and values before the first token that are trained."""
    plain, padded = pair("sdpa", None)
    tokens = torch.arange(6)[None]
    gradients = []
    for model in (plain, padded):
        torch.manual_seed(1)
        prefix = torch.randn(2, 2, 1, 2, 3, 4, requires_grad=True)  # layer, key or value, batch, head, token, size
        cache = DynamicCache([tuple(layer) for layer in prefix])
        model(input_ids=tokens, labels=tokens, past_key_values=cache).loss.backward()
        gradients.append([prefix.grad, *[p.grad for p in model.parameters()]])
    for expected, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)


def test_a_cache_of_another_kind_is_refused():
    _, padded = pair("sdpa", None)
    tokens = torch.ones(1, 3, dtype=torch.long)
    static = StaticCache(padded.config, max_cache_len=8)
    with pytest.raises(UserError, match="MistralDecoderLayer was given a StaticCache of StaticLayer"):
        padded(tokens, past_key_values=static)
    layer = padded.model.layers[0]
    both = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with pytest.raises(UserError, match="was given a EncoderDecoderCache"):
        layer(torch.zeros(1, 3, 16), past_key_values=both)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"alibi": torch.zeros(4, 1, 3)}, "takes a tensor 'alibi' that anew cannot fit to a cache"),
        ({"attention_mask": torch.ones(1, 3)}, r"an attention mask of \[1, 3\], but 3 tokens with 0 in the cache"),
    ],
)
def test_arguments_that_cannot_be_padded_are_named(arguments, sentence):
    _, padded = pair("sdpa", None)
    with pytest.raises(UserError, match=sentence):
        padded.model.layers[0](torch.zeros(1, 3, 16), past_key_values=DynamicCache(), **arguments)


class Strange(torch.nn.Module):
    """A layer whose use of the cache is set from outside."""

    layer_idx = 0
    updates = 1
    weights = None

    def forward(self, hidden_states, attention_mask=None, past_key_values=None):
        for _ in range(self.updates):
            past_key_values.update(hidden_states[:, None], hidden_states[:, None], 0)
        return hidden_states, self.weights


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"updates": 0}, "leaves its cache as it was"),
        ({"updates": 2}, "updates its cache twice"),
        ({"weights": 1.0}, "returns more than hidden states"),
        ({"layer_idx": None}, "has no layer_idx"),
    ],
)
def test_layers_that_use_a_cache_otherwise_are_refused(change, sentence):
    layer = Strange()
    for name, value in change.items():
        setattr(layer, name, value)
    call = with_fixed_sizes(layer, layer.forward)
    with pytest.raises(UserError, match=sentence):
        call(torch.zeros(1, 3, 8), past_key_values=DynamicCache())


def test_arguments_without_a_name_are_refused():
    layer = Strange()
    layer.forward = lambda hidden_states, *rest, past_key_values: hidden_states
    call = with_fixed_sizes(layer, layer.forward)
    with pytest.raises(UserError, match="does not name its arguments"):
        call(torch.zeros(1, 3, 8), torch.zeros(1), past_key_values=DynamicCache())


def test_a_tuple_stays_a_tuple():
    layer = Strange()
    hidden, weights = with_fixed_sizes(layer, layer.forward)(torch.ones(1, 3, 8), past_key_values=DynamicCache())
    assert hidden.shape == (1, 3, 8)
    assert weights is None
