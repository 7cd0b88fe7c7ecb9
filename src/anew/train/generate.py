"""Sampling text from a model in the one shape that it was trained in."""

import unicodedata
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEW_TOKENS = 80
TEMPERATURE = 0.8
TOP_K = 40
PROMPT_WORDS = 8


def prompt_from(text: str) -> str:
    """Return the first few words of a text that may begin in the middle of a word."""
    return " ".join(text.split()[1 : PROMPT_WORDS + 1]) or text


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Tensor,
    batch_size: int,
    seq_len: int,
    vocab_size: int,
    seed: int,
    new_tokens: int = NEW_TOKENS,
) -> Tensor:
    """Continue a prompt (int64 [n]) in `batch_size` ways; return int64 [batch_size, n + new_tokens].

    Only ids below `vocab_size` are drawn. The model always sees [batch_size, seq_len], so nothing new is
    compiled: a short context is padded on the right, where causal attention does not look, and a long one
    loses its oldest tokens. The same seed gives the same text.
    """
    generator = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    ids = prompt.repeat(batch_size, 1)
    for _ in range(new_tokens):
        context = ids[:, -seq_len:]
        last = context.shape[1] - 1
        padded = F.pad(context, (0, seq_len - context.shape[1]))
        logits = model(input_ids=padded).logits[:, last, :vocab_size].float()
        ids = torch.cat([ids, _draw(logits, generator)], dim=1)
    model.train(was_training)
    return ids


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one id for each row from its most likely ones; logits [rows, vocab], result int64 [rows, 1]."""
    best, ids = logits.topk(min(TOP_K, logits.shape[-1]))
    picks = torch.multinomial(F.softmax(best / TEMPERATURE, dim=-1), 1, generator=generator)
    return ids.gather(1, picks)


def decode(tokenizer: Any, ids: Tensor) -> str:
    """Return the text of a row of ids (int64 [n]), up to the first end of text."""
    row = ids.tolist()
    if tokenizer.eos_token_id in row:
        row = row[: row.index(tokenizer.eos_token_id)]
    return str(tokenizer.decode(row))


def printable(text: str) -> str:
    """Return text as a terminal may show it: a control character, with which a model could steer it, becomes U+FFFD."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\N{REPLACEMENT CHARACTER}" for c in text)
