"""Tokenizers: load one, or train a byte-level BPE on the training text; and encode documents with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anew.errors import UserError

END_OF_TEXT = "<|endoftext|>"
BYTES = 256
PIECE_LENGTH = 1 << 20


def load_tokenizer(path: Path) -> Any:
    """Load a transformers tokenizer from a tokenizer.json file or a directory; never from the network.

    Raises UserError if there is none or it cannot be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not path.exists():
        raise UserError(f"there is no tokenizer at {path}: give a tokenizer.json or a directory with one")
    try:
        if path.is_dir():
            return AutoTokenizer.from_pretrained(path, local_files_only=True)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
        if END_OF_TEXT in tokenizer.get_vocab():  # the file itself does not say what ends a text
            tokenizer.eos_token = END_OF_TEXT
        return tokenizer
    except Exception as error:  # tokenizers raises bare Exception
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot read a tokenizer from {path}: {reason}") from error


def train_tokenizer(texts: Sequence[str], vocab_size: int, path: Path) -> Any:
    """Train a byte-level BPE of at most `vocab_size` pieces, keep it at `path` and return it.

    Raises UserError if the vocabulary has no room for the 256 bytes and the end-of-text piece.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size <= BYTES:
        raise UserError(
            f"a vocabulary of {vocab_size} is too small to train a byte-level tokenizer, which needs "
            f"{BYTES + 1}: give --tokenizer or a model with a larger vocabulary"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    partial = path.with_name(f".{path.name}.partial")
    tokenizer.save(str(partial))
    partial.replace(path)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT)


def encode(tokenizer: Any, documents: Sequence[str], vocab_size: int) -> np.ndarray:
    """Encode documents, each followed by the end-of-text token if the tokenizer has one.

    Returns token ids, 1-D, uint16 where the vocabulary allows and int32 elsewhere. Raises UserError if an id
    does not fit the model's vocabulary.
    """
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.int32
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    parts = []
    for document in documents:
        encoded = tokenizer(_pieces(document), add_special_tokens=False, verbose=False)["input_ids"]
        for ids in [*encoded, end]:
            _check_ids(tokenizer, ids, vocab_size)
            parts.append(np.array(ids, dtype=dtype))
    return np.concatenate(parts)


def _pieces(text: str) -> list[str]:
    """Cut a text at line ends into pieces that encode in parallel and in little memory."""
    pieces = []
    start = 0
    while start < len(text):
        end = text.find("\n", start + PIECE_LENGTH) + 1 or len(text)
        pieces.append(text[start:end])
        start = end
    return pieces


def _check_ids(tokenizer: Any, ids: Sequence[int], vocab_size: int) -> None:
    largest = max(ids, default=0)
    if largest >= vocab_size:
        piece = tokenizer.convert_ids_to_tokens(largest)
        raise UserError(
            f"the tokenizer does not fit the model: it gives token id {largest} ({piece!r}), "
            f"and the model's vocabulary has {vocab_size}"
        )
