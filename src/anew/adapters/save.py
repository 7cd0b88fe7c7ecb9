"""Writing an adapter, or the weights of full fine-tuning, to the folder that ``peft`` and ``mlx_lm`` both load."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from anew.adapters.forms import CONFIG, MLX_WEIGHTS, PEFT_WEIGHTS, mlx_settings, to_mlx
from anew.errors import UserError

PARTIAL = ".partial"


def save_adapter(
    model: Any, directory: str | Path, *, settings: Mapping[str, Any] | None = None, step: int | None = None
) -> None:
    """Write what was trained: every file whole or not at all, and none replaced before all are on the disk.

    Args:
        model: a ``peft.PeftModel``, compiled or not; or any other model, all of whose parameters that require gradients
            are written, as mlx_lm does for its ``fine_tune_type`` ``full``.
        directory: the folder, made if it is not there. Files of an earlier adapter are replaced, others stay.
        settings: more for ``adapter_config.json``, such as the settings of the run, as mlx_lm keeps them there.
        step: also keep mlx_lm's file as ``0000100_adapters.safetensors``, for ``step`` 100.

    Raises UserError for an adapter that mlx_lm has no form for, and when the folder cannot be written.
    """
    from peft import PeftModel

    folder = Path(directory)
    adapted = isinstance(model, PeftModel)
    config, tensors = _of_adapter(model) if adapted else _of_full(model)
    files: dict[str, Callable[[Path], None]] = {CONFIG: partial(_write_json, {**(settings or {}), **config})}
    for name, content in tensors.items():
        files[name] = partial(save_file, content, metadata={"format": "pt"})
    if step is not None:
        files[f"{step:07d}_{MLX_WEIGHTS}"] = files[MLX_WEIGHTS]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder, files)
        if not adapted:
            (folder / PEFT_WEIGHTS).unlink(missing_ok=True)  # of an adapter that was here before
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the adapter to {folder}: {error}; check the folder and its space") from error


def _of_adapter(model: Any) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    from peft import get_peft_model_state_dict

    adapter = model.active_adapter
    # "auto" would ask the hub whether the vocabulary has grown.
    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    config = model.peft_config[adapter].to_dict() | {"inference_mode": True}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    return plain | mlx_settings(model), {PEFT_WEIGHTS: tensors, MLX_WEIGHTS: to_mlx(tensors)}


def _of_full(model: nn.Module) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    trained = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    return {"fine_tune_type": "full"}, {MLX_WEIGHTS: trained}


def _replace(folder: Path, files: Mapping[str, Callable[[Path], None]]) -> None:
    """Write each file beside its place, bring it to the disk, and only then rename all of them."""
    fresh = {name: folder / f".{name}{PARTIAL}" for name in files}
    try:
        for name, write in files.items():
            write(fresh[name])
            with fresh[name].open("rb") as written:
                os.fsync(written.fileno())
        for name, path in fresh.items():
            path.replace(folder / name)
    finally:
        for path in fresh.values():
            with suppress(OSError):
                path.unlink()


def _write_json(content: Any, path: Path) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
