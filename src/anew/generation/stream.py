"""Generating: transformers' ``generate`` on a model, compiled or plain; text as soon as it is there, and rates."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TextStreamer

from anew.errors import UserError
from anew.finetune.examples import stop_tokens


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_tokens: the most that are generated.
        temperature: 0 takes the likeliest token each time; else logits are divided by it and one is drawn.
        top_p: draw from the likeliest tokens that together reach this probability.
        min_p: draw from tokens at least this fraction as likely as the likeliest; 0 for all.
        top_k: draw from this many likeliest tokens; 0 for all.
        seed: of PyTorch's generator; None draws differently each time.
        stop: tokens that end the answer besides those of the model and the tokenizer.
    """

    max_tokens: int = 100
    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    seed: int | None = None
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        checks = (
            ("--max-tokens", self.max_tokens, self.max_tokens >= 1, "at least 1"),
            ("--temp", self.temperature, self.temperature >= 0, "0 or more"),
            ("--top-p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("--min-p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1"),
            ("--top-k", self.top_k, self.top_k >= 0, "0 or more"),
        )
        for flag, value, holds, rule in checks:
            if not holds:
                raise UserError(f"{flag} is {value}; it has to be {rule}")


@dataclass(frozen=True)
class Answer:
    """What came of a prompt.

    Attributes:
        tokens: the ids generated, int64 [n], the one that ended the answer among them.
        prompt_tokens: how many tokens the prompt has.
        prompt_seconds: until the first token was there: compiling, and the forward pass over the prompt.
        generation_seconds: for all tokens after the first, compiling included.
    """

    tokens: Tensor
    prompt_tokens: int
    prompt_seconds: float
    generation_seconds: float

    @property
    def prompt_rate(self) -> float:
        """Tokens of the prompt per second."""
        return self.prompt_tokens / self.prompt_seconds

    @property
    def generation_rate(self) -> float | None:
        """Tokens after the first per second; None if the first was all."""
        return (len(self.tokens) - 1) / self.generation_seconds if len(self.tokens) > 1 else None


def answer(model: Any, tokenizer: Any, ids: Tensor, sampling: Sampling, show: Callable[[str], None]) -> Answer:
    """Go on from a prompt, int64 [1, tokens], and show the text as whole words of it are there.

    The prompt is one forward pass, every token after it one over the cache of keys and values.
    Raises UserError if the model cannot take so many tokens, and for a stop token that the tokenizer does not have.
    """
    stops = _stops(model, tokenizer, sampling.stop)
    _check_length(model, ids.shape[1], sampling.max_tokens)
    torch.seed() if sampling.seed is None else torch.manual_seed(sampling.seed)
    streamer = _Streamer(tokenizer, show)
    with torch.no_grad():
        sequence = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=sampling.max_tokens,
            use_cache=True,
            eos_token_id=stops or None,
            pad_token_id=stops[0] if stops else 0,  # one row: nothing is padded, but transformers asks
            streamer=streamer,
            **_choice(sampling),
        )
    first, last = streamer.times[1], streamer.times[-1]
    return Answer(sequence[0, ids.shape[1] :], ids.shape[1], first - streamer.times[0], last - first)


def _choice(sampling: Sampling) -> dict[str, Any]:
    """Return transformers' settings for the choice of a token, in place of those that came with the model."""
    if sampling.temperature == 0:
        return {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}  # what it takes for not set
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p or None,
        "top_k": sampling.top_k,
    }


def _stops(model: Any, tokenizer: Any, words: Sequence[str]) -> list[int]:
    """Return the ids that end an answer: the model's, the tokenizer's and those of some words more."""
    found = stop_tokens(model, tokenizer)
    vocabulary = tokenizer.get_vocab() if words else {}
    for word in words:
        if word not in vocabulary:
            raise UserError(f"the tokenizer has no token '{word}' to stop at")
        found.add(vocabulary[word])
    return sorted(found)


def _check_length(model: nn.Module, prompt: int, new: int) -> None:
    config: Any = model.config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and prompt + new > limit:
        raise UserError(
            f"the prompt has {prompt} tokens and the answer may have {new}, but the model takes {limit} at most: "
            "lower --max-tokens or shorten the prompt"
        )


class _Streamer(TextStreamer):
    """Shows text as it comes; notes when the prompt was handed over and when each token came."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.show = show
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """Take the prompt, then one token after another."""
        self.times.append(time.perf_counter())
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Show what will not change any more."""
        self.show(text)
