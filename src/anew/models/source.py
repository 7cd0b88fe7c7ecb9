"""Where a pretrained model lies: a Hugging Face folder, a GGUF file or a name on the hub; checked before it is read."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from anew.errors import UserError

#: What transformers reads weights from besides GGUF.
WEIGHTS = ("*.safetensors", "*.bin")
#: The first bytes of a GGUF file (github.com/ggml-org/ggml, docs/gguf.md): the magic, then the version as uint32.
GGUF_MAGIC = b"GGUF"
GGUF_VERSIONS = (2, 3)


@dataclass(frozen=True)
class Source:
    """What ``from_pretrained`` of transformers is asked for.

    Attributes:
        name: a folder, or a name on the hub.
        gguf: the file of that folder which holds model and tokenizer; None for safetensors.
    """

    name: str
    gguf: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments that every ``from_pretrained`` takes beside the name."""
        return {"gguf_file": self.gguf} if self.gguf else {}

    @property
    def on_hub(self) -> bool:
        """Whether it is a name on the hub, and no folder here."""
        return not Path(self.name).is_dir()

    def __str__(self) -> str:
        """Return the path or the name as the user knows it."""
        return str(Path(self.name) / self.gguf) if self.gguf else self.name


def find(path: str | Path) -> Source:
    """Return where a model lies.

    Args:
        path: a folder with ``config.json`` and weights, a folder with one GGUF file, a GGUF file, or a name on the hub.

    Raises UserError for a path that is not there, a folder without a model, and damaged files.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        return _in_folder(place)
    if place.is_file():
        if place.suffix != ".gguf":
            raise UserError(f"{place} is no model: give a folder with config.json and weights, or a .gguf file")
        return _gguf(place)
    if _is_hub_name(str(path)):
        return Source(str(path))
    raise UserError(f"there is no model at {path}: no such file or folder")


def _is_hub_name(text: str) -> bool:
    """Whether a text may name a model of the hub (``OWNER/NAME`` or ``NAME``) rather than a path."""
    parts = text.split("/")
    return len(parts) <= 2 and all(parts) and parts[0] not in (".", "..", "~") and not text.endswith(".gguf")


def _in_folder(folder: Path) -> Source:
    if not (folder / "config.json").is_file():
        files = sorted(folder.glob("*.gguf"))
        if len(files) == 1:
            return _gguf(files[0])
        if files:
            raise UserError(f"{folder} holds {len(files)} GGUF files: name one of {', '.join(f.name for f in files)}")
        if (folder / "adapter_config.json").is_file():
            raise UserError(f"{folder} holds an adapter: give its base as the model, and this folder as the adapter")
        raise UserError(f"{folder} holds no model: neither config.json nor a .gguf file")
    _check_config(folder / "config.json")
    weights = [file for pattern in WEIGHTS for file in sorted(folder.glob(pattern))]
    if not weights:
        raise UserError(f"{folder} holds a config.json but no weights: neither .safetensors nor .bin files")
    for file in weights:
        if file.suffix == ".safetensors":
            check_safetensors(file)
    return Source(str(folder))


def _check_config(file: Path) -> None:
    """Refuse a configuration that is no JSON object, and weights in the packed form of mlx."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"cannot read {file}: it holds no JSON object")
    if "quantization" in config:  # the key of mlx_lm.convert
        raise UserError(f"{file.parent} holds weights that mlx quantised: give the model that they were made from")


def check_safetensors(file: Path) -> None:
    """Raise UserError for a file whose header is damaged or whose data is not all there."""
    try:
        with safe_open(file, framework="pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {file}: not a whole safetensors file ({error})") from error


def _gguf(file: Path) -> Source:
    with file.open("rb") as opened:
        head = opened.read(8)
    if len(head) < 8 or not head.startswith(GGUF_MAGIC):
        raise UserError(f"cannot read {file}: it does not start as a GGUF file does")
    (version,) = struct.unpack("<I", head[4:])
    if version not in GGUF_VERSIONS:
        raise UserError(f"cannot read {file}: GGUF version {version}; versions 2 and 3 are read")
    return Source(str(file.parent), file.name)
