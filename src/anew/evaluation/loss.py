"""The mean loss of a causal language model over rows of tokens, in batches of few fixed shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anew.errors import UserError
from anew.frontend.cache import bucket

#: A label that does not count, as in PyTorch and transformers.
IGNORED = -100


@dataclass(frozen=True)
class Row:
    """Token ids, and the label of each: the id itself if its prediction counts, or IGNORED."""

    ids: Sequence[int]
    labels: Sequence[int]

    @property
    def counted(self) -> int:
        """How many predictions count; nothing predicts the first token."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class Evaluation:
    """What came of it: the mean loss, in nats, over the tokens that count in so many rows."""

    loss: float
    tokens: int
    rows: int

    @property
    def perplexity(self) -> float:
        """The exponential of the loss; infinite where that is more than a float holds."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


def evaluate(
    model: Any,
    rows: Sequence[Row],
    batch_size: int,
    max_seq_length: int,
    progress: Callable[[int], None] = lambda rows: None,
) -> Evaluation:
    """Return the mean loss over every token that counts.

    Rows are cut to ``max_seq_length`` tokens. Rows of similar length share a batch, padded to ``max_seq_length`` or a
    smaller power of two, so that few programs are compiled. ``progress`` is told how many rows are done.

    Raises UserError if no token counts, and if the loss is not finite.
    """
    total, tokens, done = 0.0, 0, 0
    usable = [row for row in (_cut(row, max_seq_length) for row in rows) if row.counted]
    if not usable:
        raise UserError("no token of the data counts: rows need two tokens or more, and not all of them masked")
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in batches(usable, batch_size):
            counted = sum(row.counted for row in batch)
            ids, labels = tensors(batch, batch_size, max_seq_length)
            # Padding is on the right, where causal attention does not look: no mask is needed.
            loss = float(model(input_ids=ids, labels=labels).loss)
            if not math.isfinite(loss):
                raise UserError(f"the loss is {loss} in rows {done + 1} to {done + len(batch)}, by length")
            total, tokens, done = total + loss * counted, tokens + counted, done + len(batch)
            progress(done)
    model.train(was_training)
    return Evaluation(total / tokens, tokens, len(usable))


def _cut(row: Row, length: int) -> Row:
    return Row(row.ids[:length], row.labels[:length])


def batches(rows: Sequence[Row], batch_size: int) -> Iterator[Sequence[Row]]:
    """Give the rows in batches, the shortest first."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    for first in range(0, len(ordered), batch_size):
        yield ordered[first : first + batch_size]


def tensors(batch: Sequence[Row], batch_size: int, max_seq_length: int) -> tuple[Tensor, Tensor]:
    """Return a batch's ids and labels, int64 [batch_size, padded length]; what is filled up does not count."""
    length = min(bucket(max(len(row.ids) for row in batch)), max_seq_length)
    ids = torch.zeros(batch_size, length, dtype=torch.int64)
    labels = torch.full((batch_size, length), IGNORED)
    for i, row in enumerate(batch):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        labels[i, : len(row.labels)] = torch.tensor(row.labels)
    return ids, labels
