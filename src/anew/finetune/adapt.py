"""What trains: adapters of ``peft`` on the last layers, or the weights of these layers themselves."""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch
from torch import nn

from anew.adapters.dora import let_dynamo_capture_dora
from anew.errors import UserError
from anew.finetune.options import LORA_PARAMETERS, FinetuneConfig
from anew.frontend.layers import repeated_layers
from anew.models.quiet import quiet


def prepare(model: nn.Module, config: FinetuneConfig) -> nn.Module:
    """Return a model that trains as configured: :func:`adapt`, and with ``grad_checkpoint`` activations computed twice.

    Raises UserError as :func:`adapt` does.
    """
    model = adapt(model, config)
    if config.grad_checkpoint:
        checkpointing: Any = model
        checkpointing.config.use_cache = False  # it does not go with checkpoints, and training has no use for it
        with quiet():  # transformers renames what it is called by
            checkpointing.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def adapt(model: nn.Module, config: FinetuneConfig) -> nn.Module:
    """Make the last ``num_layers`` layers of a model train, and nothing else; return it, in a PeftModel for adapters.

    The adapters' first values come from the seed. Raises UserError for more layers than there are, and for keys that
    name no module which can have an adapter.
    """
    torch.manual_seed(config.seed)
    model.requires_grad_(False)
    names = _layer_names(model)
    if config.num_layers > len(names):
        raise UserError(f"--num-layers {config.num_layers} is more than the {len(names)} layers of the model")
    chosen = names if config.num_layers == -1 else names[-config.num_layers :]
    if config.fine_tune_type == "full":
        for name in chosen:
            model.get_submodule(name).requires_grad_(True)
        return model
    from peft import get_peft_model

    if config.fine_tune_type == "dora":
        let_dynamo_capture_dora()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers, about a name that peft uses
            return get_peft_model(model, _lora_config(model, chosen, config))
    except (ValueError, TypeError) as error:  # a kind of module that LoRA or DoRA has no form for
        raise UserError(f"peft cannot adapt the model: {str(error).splitlines()[0]}") from error


def _layer_names(model: nn.Module) -> list[str]:
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(layer)] for layer in repeated_layers(model)]


def _lora_config(model: nn.Module, layers: list[str], config: FinetuneConfig) -> Any:
    from peft import LoraConfig

    parameters = {**LORA_PARAMETERS, **config.lora_parameters}
    rank, rslora = parameters["rank"], bool(parameters.get("rslora"))
    alpha = parameters.get("alpha", parameters["scale"] * (rank**0.5 if rslora else rank))
    lists = {name.rpartition(".")[0] for name in layers}
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=parameters["dropout"],
        target_modules=_targets(model, layers, parameters.get("keys")),
        layers_to_transform=sorted({int(name.rpartition(".")[2]) for name in layers}),
        layers_pattern=sorted({name.rpartition(".")[2] for name in lists}),
        use_rslora=rslora,
        use_dora=config.fine_tune_type == "dora",
        task_type="CAUSAL_LM",
    )


def _targets(model: nn.Module, layers: list[str], keys: list[str] | None) -> list[str]:
    """The names inside a layer of the modules to adapt: those given, or all linear ones."""
    linear = {
        name
        for layer in layers
        for name, module in model.get_submodule(layer).named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's linear layers
    }
    if keys is None:
        return sorted(linear)
    for key in keys:
        if not any(re.search(rf"(^|\.){re.escape(key)}$", name) for name in linear):
            raise UserError(
                f"lora_parameters: '{key}' is no linear module of a layer; there are {', '.join(sorted(linear))}"
            )
    return sorted(set(keys))


def describe_trainable(model: nn.Module) -> list[str]:
    """Return how many parameters train, as mlx_lm says it, and by what factor adapters count."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    said = [f"Trainable parameters: {100 * trained / total:.3f}% ({trained / 1e6:.3f}M/{total / 1e6:.3f}M)"]
    if scale := effective_scale(model):
        said.append(f"Adapters   B A counts {scale:g} times (mlx_lm's scale; peft's lora_alpha / r)")
    return said


def effective_scale(model: nn.Module) -> float | None:
    """Return the factor of the adapters' product B A; None for a model without adapters."""
    from peft.tuners.lora import LoraLayer

    layer = next((m for m in model.modules() if isinstance(m, LoraLayer)), None)
    return None if layer is None else float(next(iter(layer.scaling.values())))
