"""Loading a pretrained causal language model and its tokenizer, ready to be compiled, trained and saved again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from anew.errors import UserError
from anew.models.quiet import quiet
from anew.models.source import Source, find

#: How long the hub may take to say that it has a model.
HUB_SECONDS = 10


def load(
    path: str | Path, *, adapter: str | Path | None = None, trust_remote_code: bool = False
) -> tuple[torch.nn.Module, Any]:
    """Load a causal language model of transformers and its tokenizer.

    Args:
        path: a Hugging Face folder, a GGUF file or a folder with one (weights are dequantised), or a name on the hub,
            which transformers downloads to its cache.
        adapter: a folder that ``peft`` or ``mlx_lm`` wrote an adapter to; see :func:`anew.adapters.load_adapter`.
        trust_remote_code: whether to run model code that comes with the model.

    Returns the model, all of it in fp32 and in evaluation mode (a ``peft.PeftModel`` with ``adapter``), and the
    tokenizer with its chat template.

    Raises UserError with one sentence: nothing there, no weights, damaged files, an architecture that transformers does
    not know, weights that are missing, no tokenizer, an adapter of another model.
    """
    source = find(path)
    if source.on_hub:
        _ask_hub(source)
    tokenizer = _load_tokenizer(source, trust_remote_code)
    model = _load_model(source, trust_remote_code)
    if adapter is not None:
        from anew.adapters import load_adapter

        model = load_adapter(model, Path(adapter))
    return model.eval(), tokenizer


def _ask_hub(source: Source) -> None:
    """Refuse a name that the hub does not give; the client of ``from_pretrained`` would try for most of a minute."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    if constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(source.name, "config.json"), str):
        return
    try:
        HfApi().model_info(source.name, timeout=HUB_SECONDS)
    except Exception as error:  # of the client, and of what it connects with
        raise _refused(source, error) from error


def _load_model(source: Source, trust_remote_code: bool) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with quiet():  # its report of what does not fit is as long as the model
            model, found = AutoModelForCausalLM.from_pretrained(
                source.name,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # then they are in `found`
                trust_remote_code=trust_remote_code,
                **source.arguments,
            )
    except Exception as error:  # transformers, its hub client and its readers raise many types
        raise _refused(source, error) from error
    _check_whole(source, found)
    return _plain(model) if source.gguf else model


def _check_whole(source: Source, found: Mapping[str, Any]) -> None:
    """Refuse weights that transformers would make up at random; warn of those that the model does not use."""
    if lacking := sorted(found["missing_keys"]):
        raise UserError(f"{source} lacks {len(lacking)} weights of its configuration, such as {lacking[0]}")
    if found["mismatched_keys"]:
        name, there, wanted = min(found["mismatched_keys"])
        raise UserError(f"{source} does not fit its configuration: {name} is {list(there)}, not {list(wanted)}")
    if unused := sorted(found["unexpected_keys"]):
        warnings.warn(f"{source} holds {len(unused)} weights that the model does not use: {unused[0]}", stacklevel=4)


def _plain(model: Any) -> Any:
    """Let a model from GGUF be what it is by now, one with fp32 weights; else it can be neither saved nor trained."""
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    return model


def _load_tokenizer(source: Source, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.name, trust_remote_code=trust_remote_code, **source.arguments)
    except Exception as error:  # as above
        if source.gguf is None and not source.on_hub:
            raise UserError(f"{source} holds no tokenizer that transformers can read: {_reason(error)}") from error
        raise _refused(source, error) from error


def _refused(source: Source, error: Exception) -> UserError:
    if not source.on_hub:
        return UserError(f"transformers cannot load {source}: {_reason(error)}")
    return UserError(f"there is no folder {source}, and the Hugging Face hub does not give it: {_reason(error)}")


def _reason(error: Exception) -> str:
    """Return the first sentence of what transformers says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".:")
