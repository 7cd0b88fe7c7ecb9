"""What the model answers as fine-tuning goes on: to the prompt of one example, in the shape that it is validated in."""

from __future__ import annotations

from typing import Any

from torch import nn

from anew.finetune.batches import IGNORED, Batches
from anew.train.generate import decode, generate

#: Tokens of an answer, and of a prompt where the loss counts an example from its beginning.
NEW_TOKENS, PROMPT_TOKENS = 20, 12


def sample(model: nn.Module, batches: Batches, tokenizer: Any, seed: int) -> str:
    """Return the prompt of the first example and what the model answers to it, drawn with a seed."""
    arguments = next(batches.spread(1)).arguments
    ids, labels = arguments["input_ids"], arguments["labels"]
    counted = (labels[0] != IGNORED).nonzero()
    first = int(counted[0]) if len(counted) else 0
    prompt = ids[0, : first if first > 1 else PROMPT_TOKENS]
    config: Any = model.config
    vocab_size = min(len(tokenizer), config.get_text_config().vocab_size)
    row = generate(model, prompt, len(ids), ids.shape[1], vocab_size, seed, NEW_TOKENS)[0, len(prompt) :]
    return str(tokenizer.decode(prompt.tolist())) + decode(tokenizer, row)  # the prompt may hold an end of text itself
