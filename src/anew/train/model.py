"""The model of a run: built from a Hugging Face configuration, counted, saved."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from anew.errors import UserError


def build_model(settings: dict[str, Any], tokenizer: Any, seed: int) -> nn.Module:
    """Return a freshly initialized fp32 causal language model of transformers.

    `settings` is a Hugging Face configuration with its model_type; the tokenizer gives the special tokens.
    The same seed gives the same weights. Raises UserError if transformers refuses the configuration.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    # A cache would be grown by every training step, and would give each layer another graph to compile.
    merged = {**settings, **special, "use_cache": False}
    torch.manual_seed(seed)
    try:
        config = AutoConfig.for_model(**merged)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # transformers validates with many types of exception
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"transformers cannot build the model configuration: {reason}") from error


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def describe_model(model: nn.Module) -> str:
    """Return the model's size in a few words."""
    config: Any = model.config
    words = [str(config.model_type)]
    for label, key in (("layers", "num_hidden_layers"), ("dim", "hidden_size"), ("vocabulary", "vocab_size")):
        if (value := getattr(config, key, None)) is not None:
            words.append(f"{label} {value}")
    return f"{', '.join(words)}, {count_parameters(model) / 1e6:.2f}M parameters"


@contextmanager
def _caching(model: Any) -> Iterator[None]:
    """Let the model say that it uses a cache: training does not, those who load the saved model should."""
    configs = (model.config, model.generation_config)
    for config in configs:
        config.use_cache = True
    try:
        yield
    finally:
        for config in configs:
            config.use_cache = False


def save_model(model: Any, tokenizer: Any, path: Path) -> None:
    """Write model (safetensors) and tokenizer to a directory that appears whole or not at all.

    Raises UserError when it cannot be written; a model that stood there before stays.
    """
    try:
        _save_model(model, tokenizer, path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write the model to {path}: {error}; free some space or choose another folder"
        ) from error


def _save_model(model: Any, tokenizer: Any, path: Path) -> None:
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        with _caching(model):
            model.save_pretrained(fresh)
        _tell_others_the_rotary_base(fresh / "config.json")
        tokenizer.save_pretrained(fresh)
        fresh.chmod(0o755)  # mkdtemp gives 0700
        if path.exists():
            replaced = fresh.with_name(fresh.name + "-replaced")
            path.rename(replaced)
            fresh.rename(path)
            shutil.rmtree(replaced)
        else:
            fresh.rename(path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _tell_others_the_rotary_base(path: Path) -> None:
    """Name the rotary embedding's settings in a saved configuration in the older way as well.

    transformers 5 writes ``rope_parameters``; mlx_lm 0.32 (models/llama.py) looks for ``rope_theta`` and
    ``rope_scaling`` and takes a base of 10000 without them.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if "rope_theta" not in rope:  # none, or one for each kind of layer, which had no older form
        return
    config["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
