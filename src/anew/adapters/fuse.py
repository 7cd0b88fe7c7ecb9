"""Fusing: an adapter's product added to the weights it adapts, so that a plain model is left."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from anew.adapters.forms import has_adapted_tied_head
from anew.errors import UserError


def fuse(model: Any) -> Any:
    """Add the active adapter of a ``peft.PeftModel`` to its weights; return the plain model of transformers.

    A model without an adapter is returned as it is. A head that is adapted and tied to the embedding becomes one of its
    own, since the adapter changes the head alone. Raises UserError if a fused weight is not finite.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return model
    _untie_adapted_head(model)
    try:
        return model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # NaNs, found by safe_merge
        raise UserError(f"the adapter cannot be fused: {str(error).splitlines()[0]}") from error


def _untie_adapted_head(model: Any) -> None:
    if has_adapted_tied_head(model):
        head = model.get_output_embeddings()
        head.base_layer.weight = nn.Parameter(head.base_layer.weight.detach().clone(), requires_grad=False)
        model.config.get_text_config().tie_word_embeddings = False
        model.config.tie_word_embeddings = False


def to_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert a model's weights; raises UserError that names the first one which the type cannot hold."""
    for name, parameter in model.named_parameters():
        largest = float(parameter.detach().abs().max())
        if not largest <= torch.finfo(dtype).max:
            kind = str(dtype).removeprefix("torch.")
            raise UserError(f"'{name}' reaches {largest:g}, which {kind} cannot hold: choose another --dtype")
    return model.to(dtype)
