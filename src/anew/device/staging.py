"""Folders for a while: of a program, of shared memory. Those of processes that died are cleaned up."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "anew-"


@contextmanager
def staging_folder(parent: Path | None = None) -> Iterator[Path]:
    """Give an empty folder, in the system's folder for temporary files by default, and delete it in the end."""
    parent = parent or Path(tempfile.gettempdir())
    clean_up_once(parent)
    with tempfile.TemporaryDirectory("", f"{PREFIX}{os.getpid()}-", parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@functools.cache
def clean_up_once(parent: Path) -> None:
    """Delete the folders of processes that are gone: they crashed or were killed."""
    for folder in parent.glob(f"{PREFIX}*-*"):
        process = folder.name.removeprefix(PREFIX).split("-")[0]
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(folder, ignore_errors=True)  # another user's stays


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives, and belongs to somebody else
    return True
