"""Folders that programs are compiled in: one each, gone with it; those of processes that died are cleaned up."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "anew-program-"


@contextmanager
def staging_folder() -> Iterator[Path]:
    """Give an empty folder, and delete it in the end."""
    clean_up_once()
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@functools.cache
def clean_up_once() -> None:
    """Delete the folders of processes that are gone: they crashed or were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
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
