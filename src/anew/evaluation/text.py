"""Plain text as rows: consecutive windows in which every token but the first is predicted once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from anew.evaluation.loss import Row
from anew.train.tokenizer import encode


def windows(documents: Sequence[str], tokenizer: Any, vocabulary: int, length: int) -> list[Row]:
    """Return the windows of documents, each at most ``length`` tokens.

    One begins with the last token of the one before, which it does not predict again.
    Raises UserError if an id does not fit the model's vocabulary.
    """
    tokens: np.ndarray = encode(tokenizer, documents, vocabulary)
    starts = range(0, max(1, len(tokens) - 1), length - 1)
    parts = [tokens[start : start + length].tolist() for start in starts]
    return [Row(part, part) for part in parts]
