"""Beginning from weights instead of random numbers: a Hugging Face folder or a model.bin of llama2.c."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from anew.errors import UserError
from anew.llama2c import read_config, read_model

LLAMA2C = ".bin"


def read_configuration(path: Path) -> dict[str, Any]:
    """Return the Hugging Face configuration of the model at a path; raises UserError if there is none."""
    if path.suffix == LLAMA2C:
        return read_config(path)
    if not (path / "config.json").is_file():
        raise UserError(
            f"--init-from {path}: there is no model; give a Hugging Face folder or a model.bin of llama2.c "
            "(anew convert makes a folder of a GGUF file)"
        )
    from transformers import AutoConfig

    try:
        found: dict[str, Any] = AutoConfig.from_pretrained(path, local_files_only=True).to_dict()
    except Exception as error:  # transformers raises many types
        raise UserError(f"cannot read {path / 'config.json'}: {str(error).strip().splitlines()[0]}") from error
    return {key: value for key, value in found.items() if key not in ("dtype", "architectures", "transformers_version")}


def tokenizer_beside(path: Path) -> Path | None:
    """Return where the tokenizer of a model lies: in its folder, if anywhere."""
    return path if path.is_dir() and (path / "tokenizer.json").exists() else None


def load_weights(model: nn.Module, path: Path) -> None:
    """Give a model the weights at a path, in place; raises UserError if they are not those of its configuration."""
    from anew.models import load

    source: Any = read_model(path) if path.suffix == LLAMA2C else load(path)[0]
    with torch.no_grad():
        for (name, mine), (other, theirs) in zip(model.named_parameters(), source.named_parameters(), strict=True):
            if name != other or mine.shape != theirs.shape:
                raise UserError(f"{path} does not fit the model: {other} {list(theirs.shape)} is not {name}")
            mine.copy_(theirs)
