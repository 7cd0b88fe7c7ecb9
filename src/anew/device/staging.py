"""Folders for a while: of a program, of shared memory. Those of processes that died are cleaned up."""

from __future__ import annotations

import functools
import glob
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from anew.device.base import DeviceError
from anew.mil import Weights

PREFIX = "anew-"
_count = itertools.count()


@contextmanager
def staging_folder(parent: Path | None = None) -> Iterator[Path]:
    """Give an empty folder, in the system's folder for temporary files by default, and delete it in the end."""
    parent = parent or Path(tempfile.gettempdir())
    clean_up_once(parent)
    with tempfile.TemporaryDirectory("", f"{PREFIX}{os.getpid()}-", parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def owned_folder(folder: Path) -> Iterator[Path]:
    """Make a folder whose name is given, with a mark of this process; delete it with the last of its marks."""
    clean_up_once(folder.parent)
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / f".{PREFIX}{os.getpid()}-{next(_count)}"
    mark.touch()
    try:
        yield folder
    finally:
        _remove_mark(mark)


def _remove_mark(mark: Path) -> None:
    mark.unlink(missing_ok=True)
    if not _found(mark.parent, f".{PREFIX}*"):
        shutil.rmtree(mark.parent, ignore_errors=True)


@functools.cache
def clean_up_once(parent: Path) -> None:
    """Delete the folders of processes that are gone: they crashed or were killed."""
    for folder in _found(parent, f"{PREFIX}*-*"):
        if _is_left(folder):
            shutil.rmtree(folder, ignore_errors=True)  # another user's stays
    for mark in _found(parent, f"*/.{PREFIX}*-*"):
        if _is_left(mark):
            _remove_mark(mark)


def _found(parent: Path, pattern: str) -> list[Path]:
    # The glob module passes over folders that vanish meanwhile; pathlib's raises.
    return [parent / name for name in glob.iglob(pattern, root_dir=parent)]


def _is_left(path: Path) -> bool:
    process = path.name.removeprefix(".").removeprefix(PREFIX).split("-")[0]
    return process.isdigit() and not _alive(int(process))


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives, and belongs to somebody else
    return True


def weight_files(text: str, weights: Weights, name: str = "weights.bin") -> Mapping[str, bytes]:
    """The weight files of a program by the path that its text gives each; none where the text names none."""
    if isinstance(weights, Mapping):
        return weights
    return {f"@model_path/{name}": weights} if "BLOBFILE" in text else {}


def write_program(folder: Path, model: str, text: str, files: Mapping[str, bytes]) -> None:
    """Lay out a program as a compiler wants it: text, and the files that the text names beside it.

    Raises DeviceError when a file would lie elsewhere.
    """
    (folder / model).write_text(text, encoding="utf-8")
    for path, content in files.items():
        file = folder / path.removeprefix("@model_path/")
        if not file.resolve().is_relative_to(folder.resolve()):
            raise DeviceError("compile", f"the weight file '{path}' does not lie beside the program")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
