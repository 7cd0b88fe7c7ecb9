"""Checkpoints: named tensors (safetensors) and JSON in a folder that appears whole or not at all.

A run's folder holds ``checkpoint-STEP/`` for the last few saved steps and the file ``latest``, which names the newest.
A save writes ``checkpoint-STEP.partial/``, brings every file to the disk, and only then renames the folder and replaces
``latest``; so whatever kills the process, what ``latest`` names is whole. Nothing is pickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from anew.errors import UserError

FORMAT = "anew checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
LATEST = "latest"
PARTIAL = ".partial"
_NAME = re.compile(r"checkpoint-(\d+)")

#: What a checkpoint holds: tensors by file and name, documents (JSON values) by file; files without their suffixes.
Tensors = Mapping[str, Mapping[str, Tensor]]
Documents = Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found to be those that were written."""

    path: Path

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of ``NAME.safetensors``; raises UserError if there is none."""
        path = self._file(f"{name}.safetensors")
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read {path}: {error}") from error

    def document(self, name: str) -> Any:
        """Return the value of ``NAME.json``; raises UserError if there is none."""
        return _read_json(self._file(f"{name}.json"))

    def _file(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise UserError(f"{self.path} holds no {name}: it is a checkpoint of something else")
        return path


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint folder once every file's size and SHA-256 are found to be those in its manifest.

    Raises UserError with one sentence for a folder that is no checkpoint, and for a missing, truncated or changed file.
    """
    if not path.is_dir():
        raise UserError(f"there is no checkpoint folder {path}")
    if not (path / MANIFEST).is_file():
        raise UserError(f"{path} is not a checkpoint of anew: it has no {MANIFEST}")
    manifest = _read_json(path / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not _is_listing(files) or manifest.get("format") != FORMAT:
        raise UserError(f'{path} is not a checkpoint of anew: its {MANIFEST} does not say "{FORMAT}"')
    if manifest.get("version") != VERSION:
        raise UserError(f"{path} is a checkpoint of version {manifest.get('version')}; this anew reads {VERSION}")
    for name, written in files.items():
        _check_file(path / Path(name).name, written)
    return Checkpoint(path)


def _is_listing(files: Any) -> TypeGuard[dict[str, dict[str, Any]]]:
    return isinstance(files, dict) and bool(files) and all(isinstance(written, dict) for written in files.values())


def _check_file(path: Path, written: Mapping[str, Any]) -> None:
    try:
        found = _fingerprint(path)
    except OSError as error:
        raise UserError(f"the checkpoint is damaged: cannot read {path}: {error.strerror}") from error
    if found["bytes"] != written.get("bytes"):
        raise UserError(
            f"the checkpoint is damaged: {path} has {found['bytes']} bytes, {written.get('bytes')} were written"
        )
    if found != written:
        raise UserError(f"the checkpoint is damaged: {path} is not what was written, its SHA-256 differs")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: the run's folder.
        keep: how many checkpoints a save leaves, the new one among them.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def latest(self) -> Path | None:
        """Return the checkpoint that ``latest`` names; None if nothing was saved yet.

        Raises UserError if that file names no checkpoint of this folder.
        """
        pointer = self.folder / LATEST
        try:
            name = pointer.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {pointer}: {error}") from error
        if not _NAME.fullmatch(name) or not (self.folder / name).is_dir():
            found = ", ".join(str(path) for path in self.all()) or "there is none"
            raise UserError(f"{pointer} names no checkpoint: choose one of the folder yourself ({found})")
        return self.folder / name

    def all(self) -> list[Path]:
        """Return every checkpoint of the folder, oldest first."""
        return sorted((p for p in self.folder.glob("checkpoint-*") if _NAME.fullmatch(p.name)), key=step_of)

    def partial(self) -> list[Path]:
        """Return what killed saves left behind: nothing ever reads it, and the next save removes it."""
        return sorted(self.folder.glob(f"checkpoint-*{PARTIAL}"))

    def save(self, step: int, tensors: Tensors, documents: Documents) -> Path:
        """Write ``checkpoint-STEP``, point ``latest`` to it, remove all but the newest ``keep``; return its path.

        Tensors are written contiguously, in their own types. Raises UserError if the folder cannot be written; the
        checkpoints that were there stay.
        """
        path = self.folder / f"checkpoint-{step}"
        try:
            self._write(path, tensors, documents)
            self._point_to(path)
            for old in [p for p in self.all() if step_of(p) <= step][: -self.keep]:
                _remove(old)
            for stale in self.partial():
                shutil.rmtree(stale)
        except (OSError, SafetensorError) as error:
            raise UserError(self._cannot_save(path, error)) from error
        return path

    def clear(self) -> None:
        """Remove every checkpoint, the pointer to them first; raises UserError if that fails."""
        try:
            (self.folder / LATEST).unlink(missing_ok=True)
            for path in self.all():
                _remove(path)
        except OSError as error:
            raise UserError(f"cannot remove the checkpoints in {self.folder}: {error}") from error

    def _write(self, path: Path, tensors: Tensors, documents: Documents) -> None:
        partial = path.with_name(path.name + PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            _fill(partial, tensors, documents)
            if path.exists():  # from before the run went back to an older checkpoint
                _remove(path)
            partial.rename(path)
            _sync(self.folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _point_to(self, path: Path) -> None:
        partial = self.folder / (LATEST + PARTIAL)
        partial.write_text(path.name + "\n", encoding="utf-8")
        _sync(partial)
        partial.replace(self.folder / LATEST)
        _sync(self.folder)

    def _cannot_save(self, path: Path, error: Exception) -> str:
        reason = getattr(error, "strerror", None) or str(error)
        remedy = "free some space or choose another folder" if _is_full(error) else "check the folder"
        kept = None
        with suppress(UserError):
            kept = self.latest()
        intact = f"{kept} is whole" if kept else "nothing was saved before"
        return f"cannot write {path}: {reason}; {intact}; {remedy}"


def step_of(path: Path) -> int:
    """Return the step that a checkpoint's folder names; raises UserError for any other name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise UserError(f"{path} is not a checkpoint: its name is not checkpoint-STEP")
    return int(match[1])


def _fill(folder: Path, tensors: Tensors, documents: Documents) -> None:
    """Write every file and, when they are on the disk, the manifest that lists them."""
    for name, group in tensors.items():
        contiguous = {key: tensor.detach().contiguous() for key, tensor in group.items()}
        save_file(contiguous, folder / f"{name}.safetensors", metadata={"format": "pt"})
    for name, document in documents.items():
        _write_json(folder / f"{name}.json", document)
    written = sorted(folder.iterdir())
    for path in written:
        _sync(path)
    manifest = {"format": FORMAT, "version": VERSION, "files": {path.name: _fingerprint(path) for path in written}}
    _write_json(folder / MANIFEST, manifest)
    _sync(folder / MANIFEST)
    _sync(folder)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _remove(path: Path) -> None:
    """Remove a checkpoint so that a kill in the middle leaves something partial, not a checkpoint with holes."""
    doomed = path.with_name(f"{path.name}.removed{PARTIAL}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def _sync(path: Path) -> None:
    """Return once a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"the checkpoint is damaged: cannot read {path}: {error}") from error


def _is_full(error: Exception) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in full or any(os.strerror(code) in str(error) for code in full)
