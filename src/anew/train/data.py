"""Text in, batches out: reading files, splitting tokens, and the order in which windows are visited."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anew.errors import UserError

SUFFIXES = (".txt", ".md")
VALIDATION_SHARE = 0.05

Batch = tuple[Tensor, Tensor]


def read_documents(path: Path) -> list[str]:
    """Return the text of a file, or of every .txt and .md file below a directory in the order of their names.

    Raises UserError if there is nothing to read or a file is not UTF-8 text.
    """
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
        if not files:
            raise UserError(f"there is no {' or '.join(SUFFIXES)} file in {path}")
    else:
        files = [path]
    documents = [text for text in map(_read_text, files) if text.strip()]
    if not documents:
        raise UserError(f"{path} is empty: there is no text to train on")
    return documents


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if (nul := content.find(b"\0")) >= 0:
        raise UserError(f"{path} is binary, not text: there is a NUL byte at offset {nul}")
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise UserError(f"{path} is not UTF-8 text: byte 0x{byte:02x} at offset {error.start}") from error


def training_part(documents: list[str]) -> list[str]:
    """Return the documents without the last 5 % of their characters, which a tokenizer must not learn from."""
    left = sum(map(len, documents)) * (1 - VALIDATION_SHARE)
    kept = []
    for document in documents:
        kept.append(document[: max(0, int(left))])
        left -= len(document)
    return [document for document in kept if document]


def split(tokens: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Split tokens (1-D) into a training part and the last 5 % for validation, each of one window or more.

    Raises UserError if the tokens do not make one window of seq_len + 1 for each part.
    """
    window = seq_len + 1
    if len(tokens) < 2 * window:
        raise UserError(
            f"the data is too short: it has {len(tokens)} tokens, and --seq-len {seq_len} needs {2 * window}, "
            f"one window of {window} for training and one for validation"
        )
    held_out = max(window, int(len(tokens) * VALIDATION_SHARE))
    return tokens[:-held_out], tokens[-held_out:]


def _rows(tokens: np.ndarray, starts: np.ndarray, seq_len: int) -> Batch:
    """Return inputs and targets, int64 [len(starts), seq_len]; a target is the token after its input."""
    at = starts[:, None] + np.arange(seq_len + 1)
    rows = torch.from_numpy(tokens[at].astype(np.int64))
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


class Windows:
    """Shuffled training windows whose order is a pure function of (seed, index), so that a run can resume.

    An epoch cuts the tokens into windows from a random offset and visits each once, in random order. The
    inputs of two windows share no token; the last target of one is the first input of the next.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int, seed: int) -> None:
        self.tokens = tokens
        self.seq_len = seq_len
        self.seed = seed
        # The count leaves room for the largest offset, so that all epochs have the same length.
        self.per_epoch = max(1, (len(tokens) - seq_len) // seq_len)
        self._largest_offset = min(seq_len - 1, len(tokens) - 1 - self.per_epoch * seq_len)
        self._epoch = -1
        self._starts = np.empty(0, dtype=np.int64)

    def starts(self, epoch: int) -> np.ndarray:
        """Return where the windows of an epoch start, int64 [per_epoch], in the order of their visit."""
        if epoch != self._epoch:
            random = np.random.default_rng((self.seed, epoch))
            offset = random.integers(self._largest_offset + 1)
            self._starts = offset + self.seq_len * random.permutation(self.per_epoch)
            self._epoch = epoch
        return self._starts

    def batch(self, index: int, batch_size: int) -> Batch:
        """Return batch number `index` of the run: inputs and targets, int64 [batch_size, seq_len]."""
        first = index * batch_size
        visits = [divmod(i, self.per_epoch) for i in range(first, first + batch_size)]
        starts = np.array([self.starts(epoch)[position] for epoch, position in visits])
        return _rows(self.tokens, starts, self.seq_len)


@dataclass(frozen=True)
class ValidationBatch:
    """A batch of full shape [batch_size, seq_len], of which the first `real` rows count."""

    inputs: Tensor
    targets: Tensor
    real: int


def validation_batches(tokens: np.ndarray, seq_len: int, batch_size: int, most: int) -> list[ValidationBatch]:
    """Return up to `most` batches of fixed windows, spread evenly over the tokens.

    The last batch is filled with repeated rows, which do not count: every batch has the one shape that is
    compiled.
    """
    available = (len(tokens) - 1) // seq_len
    count = min(available, most * batch_size)
    starts = np.arange(count) * available // count * seq_len
    batches = []
    for first in range(0, count, batch_size):
        rows = starts[first : first + batch_size]
        inputs, targets = _rows(tokens, np.resize(rows, batch_size), seq_len)
        batches.append(ValidationBatch(inputs, targets, len(rows)))
    return batches
