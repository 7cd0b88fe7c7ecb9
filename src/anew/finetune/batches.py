"""Examples as batches of few shapes: sorted by length, padded to buckets or packed, in an order a run can resume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anew.finetune.examples import Example

#: The shortest length of a batch. Longer ones double: each length is a set of programs, and a process may load 128.
SHORTEST = 32
#: What the loss of transformers' models leaves out.
IGNORED = -100

#: Examples that share a row of a batch; one, unless they are packed.
PackedRow = tuple[Example, ...]


@dataclass(frozen=True)
class Batch:
    """Keyword arguments of a causal language model of transformers, and how many tokens the loss counts.

    ``input_ids`` and ``labels`` are int64 [batch, length]. Packed rows come with ``position_ids`` of that shape and a
    bool ``attention_mask`` [batch, 1, length, length]. Padding needs no mask: it stands after all that is counted.
    """

    arguments: dict[str, Tensor]
    tokens: int


class Batches:
    """The batches of a data set, each of one bucket; the last is filled with rows that count nothing.

    Args:
        examples: at least one.
        batch_size: rows of every batch.
        longest: no row is longer.
        packing: put several examples into rows of ``longest``.
    """

    def __init__(self, examples: Sequence[Example], batch_size: int, longest: int, *, packing: bool = False) -> None:
        self.batch_size = batch_size
        self.longest = longest
        self.packing = packing
        rows = pack(examples, longest) if packing else [(e,) for e in sorted(examples, key=lambda e: len(e.ids))]
        self._rows = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self._rows)

    def at(self, step: int, seed: int) -> Batch:
        """Return the batch of a step: each epoch visits all, in an order that seed and epoch alone decide."""
        epoch, position = divmod(step, len(self))
        if epoch != self._epoch:
            self._order = np.random.default_rng((seed, epoch)).permutation(len(self))
            self._epoch = epoch
        return self._batch(int(self._order[position]))

    def spread(self, most: int) -> Iterator[Batch]:
        """Yield up to `most` batches, -1 for all, spread evenly over short and long ones."""
        count = len(self) if most == -1 else min(most, len(self))
        for number in range(count):
            yield self._batch(number * len(self) // count)

    def lengths(self) -> list[int]:
        """Return the different lengths of the batches."""
        return sorted({self._length(rows) for rows in self._rows})

    def digest(self) -> str:
        """Return the SHA-256 of all tokens and of what is counted, in the order of the batches."""
        found = hashlib.sha256()
        for rows in self._rows:
            for example in (example for row in rows for example in row):
                found.update(np.array([example.ids, example.counted], dtype=np.int64).tobytes())
        return found.hexdigest()

    def _length(self, rows: Sequence[PackedRow]) -> int:
        return self.longest if self.packing else bucket(max(len(row[0].ids) for row in rows), self.longest)

    def _batch(self, number: int) -> Batch:
        rows = self._rows[number]
        ids = torch.zeros(self.batch_size, self._length(rows), dtype=torch.int64)
        labels = torch.full_like(ids, IGNORED)
        for at, row in enumerate(rows):
            tokens = [i for example in row for i in example.ids]
            counted = [c for example in row for c in example.counted]
            ids[at, : len(tokens)] = torch.tensor(tokens)
            labels[at, : len(tokens)] = ids[at, : len(tokens)].where(torch.tensor(counted), IGNORED)
        arguments = {"input_ids": ids, "labels": labels}
        if self.packing:
            arguments |= _apart(rows, *ids.shape)
        return Batch(arguments, int((labels != IGNORED).sum()))


def bucket(length: int, longest: int) -> int:
    """Return the length that a batch is padded to: 32, 64, 128 and so on, and at most `longest`."""
    padded = SHORTEST
    while padded < length:
        padded *= 2
    return min(padded, longest)


def pack(examples: Sequence[Example], length: int) -> list[PackedRow]:
    """Distribute examples over rows of a length, the longest first, each into the fullest row that still holds it."""
    rows: list[list[Example]] = []
    room: list[int] = []
    for example in sorted(examples, key=lambda e: -len(e.ids)):
        need = len(example.ids)
        fitting = [at for at, left in enumerate(room) if left >= need]
        if fitting:
            at = min(fitting, key=room.__getitem__)
        else:
            at = len(rows)
            rows.append([])
            room.append(length)
        rows[at].append(example)
        room[at] -= need
    return [tuple(row) for row in rows]


def _apart(rows: Sequence[PackedRow], batch_size: int, length: int) -> dict[str, Tensor]:
    """Positions that begin anew with each example, and a mask by which it sees itself alone, and causally."""
    number = torch.full((batch_size, length), -1)
    positions = torch.zeros(batch_size, length, dtype=torch.int64)
    for at, row in enumerate(rows):
        start = 0
        for which, example in enumerate(row):
            end = start + len(example.ids)
            number[at, start:end] = which
            positions[at, start:end] = torch.arange(end - start)
            start = end
    same = number[:, :, None] == number[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return {"position_ids": positions, "attention_mask": (same & causal)[:, None]}
