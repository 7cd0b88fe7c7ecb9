"""What a pretrained model is evaluated on, rows of jsonl or windows of plain text, and its perplexity there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anew.errors import UserError
from anew.finetune.examples import Encoder, Example, fit
from anew.finetune.rows import Names, read_file
from anew.train.data import read_documents
from anew.train.tokenizer import encode

#: The rows that a folder of mlx_lm's keeps for the end.
TEST = "test.jsonl"


def read(
    path: Path, tokenizer: Any, vocabulary: int, length: int, mask_prompt: bool = False
) -> tuple[list[Example], list[str]]:
    """Return the examples at a path, and what there is to say about them.

    Args:
        path: a jsonl file of any form that :mod:`anew.finetune.rows` knows, a folder with ``test.jsonl``, a text file,
            or a folder of text files.
        tokenizer: of transformers.
        vocabulary: of the model.
        length: rows are cut to so many tokens, and text into windows of as many.
        mask_prompt: count the completion, or the last message, alone.

    Raises UserError for bad rows, each by its line, for what is not text, and if nothing is left that counts.
    """
    file = path / TEST if (path / TEST).is_file() else path
    if file.suffix == ".jsonl":
        examples = Encoder(tokenizer, mask_prompt=mask_prompt).encode(read_file(file, Names()))
        if not examples:
            raise UserError(f"{file} holds no rows")
        return fit(examples, length, str(file))
    if mask_prompt:
        raise UserError(f"--mask-prompt needs rows of jsonl with a prompt, and {path} is plain text")
    return fit(windows(read_documents(path), tokenizer, vocabulary, length), length, str(path))


def windows(documents: Sequence[str], tokenizer: Any, vocabulary: int, length: int) -> list[Example]:
    """Return the windows of documents, each at most ``length`` tokens.

    One begins with the last token of the one before, so that every token but the very first is predicted once.
    Raises UserError if an id does not fit the model's vocabulary.
    """
    tokens = encode(tokenizer, documents, vocabulary)
    starts = range(0, max(1, len(tokens) - 1), length - 1)
    parts = [tokens[start : start + length].tolist() for start in starts]
    return [Example(part, [False, *[True] * (len(part) - 1)]) for part in parts]


def perplexity(loss: float) -> float:
    """Return the exponential of a loss in nats; infinite where that is more than a float holds."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
