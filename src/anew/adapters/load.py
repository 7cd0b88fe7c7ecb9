"""Reading an adapter that anew, ``peft`` or ``mlx_lm`` wrote, onto the model that it was made for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from anew.adapters.dora import let_dynamo_capture_dora
from anew.adapters.forms import CONFIG, MLX_WEIGHTS, PEFT_WEIGHTS, PREFIX, peft_settings, to_peft
from anew.errors import UserError
from anew.models.quiet import quiet


def load_adapter(model: Any, directory: str | Path, *, trainable: bool = False) -> Any:
    """Put the adapter of a folder onto a model.

    Args:
        model: a causal language model of transformers without adapters.
        directory: holds ``adapter_config.json`` and ``adapter_model.safetensors`` (peft) or ``adapters.safetensors``
            (mlx_lm); peft's is taken where both are.
        trainable: whether the adapter's parameters are to require gradients.

    Returns a ``peft.PeftModel`` around the model; for full fine-tuning the model itself, its weights replaced.

    Raises UserError: nothing there, damaged files, no LoRA, modules or shapes that the model does not have.
    """
    folder = Path(directory).expanduser()
    settings = _read_settings(folder)
    if settings.get("fine_tune_type") == "full" and "peft_type" not in settings:
        _set_full(model, folder / MLX_WEIGHTS)
        return model
    tensors = _read(folder / (PEFT_WEIGHTS if (folder / PEFT_WEIGHTS).is_file() else MLX_WEIGHTS))
    wrapped = _wrap(model, _lora_config(folder, settings, tensors, trainable), folder)
    _set(wrapped, tensors, folder)
    return wrapped


def load_weights(model: Any, file: str | Path) -> None:
    """Bring the tensors of one file into a ``peft.PeftModel`` that has an adapter of that form.

    Names are peft's or mlx_lm's. For a model without adapters, the file holds weights by the model's own names.
    Raises UserError for a damaged file and for names or shapes that the model does not have.
    """
    from peft import PeftModel

    path = Path(file).expanduser()
    if isinstance(model, PeftModel):
        _set(model, _read(path), path)
    else:
        _set_full(model, path)


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"there is no adapter in {folder}: it has no {CONFIG}")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"cannot read {path}: it holds no JSON object")
    return settings


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"there are no adapter weights at {path}")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: not a whole safetensors file ({error})") from error


def _read(path: Path) -> dict[str, Tensor]:
    """Return a file's tensors under peft's names."""
    tensors = _read_file(path)
    return tensors if any(name.startswith(PREFIX) for name in tensors) else to_peft(tensors)


def _lora_config(folder: Path, settings: Mapping[str, Any], names: Iterable[str], trainable: bool) -> Any:
    from peft import LoraConfig

    if "peft_type" in settings:
        if settings["peft_type"] != "LORA":
            raise UserError(f"{folder} holds an adapter of type {settings['peft_type']}; anew loads LORA")
        known = {field.name for field in fields(LoraConfig)}  # the rest is mlx_lm's
        arguments = {key: value for key, value in settings.items() if key in known}
    else:
        arguments = _arguments_of_mlx(folder, settings, names)
    try:
        return LoraConfig(**{**arguments, "task_type": "CAUSAL_LM", "inference_mode": not trainable})
    except (TypeError, ValueError) as error:
        raise UserError(f"peft refuses {folder / CONFIG}: {error}") from error


def _arguments_of_mlx(folder: Path, settings: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    try:
        return peft_settings(settings, names)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG} has neither the keys of peft nor those of mlx_lm") from error


def _wrap(model: Any, config: Any, folder: Path) -> Any:
    from peft import get_peft_model

    if config.use_dora:
        let_dynamo_capture_dora()
    try:
        with quiet():
            return get_peft_model(model, config)
    except ValueError as error:  # no module of that name, or one that LoRA has no form for
        raise UserError(f"the adapter in {folder} is not for this model: {_first_line(error)}") from error


def _set(model: Any, tensors: Mapping[str, Tensor], place: Path) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    adapter = model.active_adapter
    here = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    # Beside the adapter of a head or an embedding, peft writes weights of the model's own.
    _check_fit({**model.state_dict(), **here}, tensors, place, "the adapter")
    if lacking := sorted(here.keys() - tensors.keys()):
        raise UserError(f"the adapter in {place} is not whole: it has no '{lacking[0]}'")
    set_peft_model_state_dict(model, dict(tensors), adapter_name=adapter)


@torch.no_grad()
def _set_full(model: Any, path: Path) -> None:
    tensors = _read_file(path)
    here = model.state_dict()
    _check_fit(here, tensors, path, "the weights")
    for name, tensor in tensors.items():
        here[name].copy_(tensor)


def _check_fit(here: Mapping[str, Tensor], tensors: Mapping[str, Tensor], place: Path, what: str) -> None:
    for name, tensor in tensors.items():
        if name not in here:
            raise UserError(f"{what} in {place} are not for this model: it has no '{name}'")
        if here[name].shape != tensor.shape:
            shapes = f"{list(tensor.shape)}, and {list(here[name].shape)} in the model"
            raise UserError(f"{what} in {place} are not for this model: '{name}' is {shapes}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
