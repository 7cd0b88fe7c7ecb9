"""Token files: raw 16-bit ids as llama2.c and the ANE trainers keep TinyStories, and llm.c's, which have a header.

Sources: llama2.c, tinystories.py; llm.c, dev/data/data_common.py (magic 20240520: 16-bit ids; 20240801: 32-bit ids).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from anew.errors import UserError

SUFFIX = ".bin"
HEADER = 256
#: Magic numbers of llm.c's headers, and the type of the ids behind them.
MAGICS = {20240520: "<u2", 20240801: "<u4"}


def read_tokens(path: Path, vocab_size: int) -> np.ndarray:
    """Return the token ids of a file, 1-D, mapped from the disk.

    Raises UserError when the file cannot be read, is empty or cut off, or holds an id of `vocab_size` or more.
    """
    try:
        size = path.stat().st_size
        head = np.fromfile(path, dtype="<i4", count=3) if size >= 12 else np.zeros(3, "<i4")
        kind = MAGICS.get(int(head[0]))
        start = 4 * HEADER if kind else 0
        ids = np.memmap(path, dtype=kind or "<u2", mode="r", offset=start) if size > start else np.zeros(0, "<u2")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is no file of 16-bit tokens: it has {size} bytes, and they do not divide") from error
    if not len(ids):
        raise UserError(f"{path} is empty: there are no tokens to train on")
    if kind and len(ids) != int(head[2]):
        raise UserError(f"{path} is cut off: its header counts {int(head[2])} tokens, and it has {len(ids)}")
    if (largest := int(ids.max())) >= vocab_size:
        at = int(np.argmax(ids >= vocab_size))
        found = f"token {at} is id {int(ids[at])}, the largest {largest}"
        raise UserError(f"{path} does not fit the model: {found}, and the model's vocabulary has {vocab_size}")
    return ids


def write_tokens(ids: np.ndarray, path: Path) -> None:
    """Write token ids (1-D, each below 65536) as raw 16-bit numbers, whole or not at all; raises UserError."""
    if len(ids) and int(ids.max()) >= 1 << 16:
        raise UserError(f"token id {int(ids.max())} does not fit the 16 bits of {path}: the vocabulary is too large")
    partial = path.with_name(f".{path.name}.partial")
    try:
        ids.astype("<u2").tofile(partial)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; free some space or choose another file") from error
    finally:
        partial.unlink(missing_ok=True)
