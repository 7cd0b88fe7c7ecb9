"""The optimizers of PyTorch under the names that mlx_lm has for its own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from anew.errors import UserError
from anew.finetune.config import check_names
from anew.optim import EngineAdam, EngineAdamW

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "muon": torch.optim.Muon,
    "sgd": torch.optim.SGD,
    "adafactor": torch.optim.Adafactor,
}
ON_ENGINE = {"adam": EngineAdam, "adamw": EngineAdamW}
ON_ENGINE_SETTINGS = {"betas", "eps", "weight_decay", "fused"}
FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


def make_optimizer(
    model: nn.Module, name: str, settings: Mapping[str, Any], rate: float, *, engine: bool = False
) -> torch.optim.Optimizer:
    """Return an optimizer over the parameters that train.

    Args:
        model: the model.
        name: one of OPTIMIZERS.
        settings: the option ``optimizer_config``: for each name, keyword arguments of PyTorch's class. mlx_lm's
            ``bias_correction`` may be true, as PyTorch's always is.
        rate: the learning rate of the first step.
        engine: whether the model is compiled: Adam and AdamW then read gradients where the engine wrote them.

    Raises UserError for unknown names, and for arguments that PyTorch refuses.
    """
    check_names(settings, OPTIMIZERS, "optimizer_config: optimizer")
    kind, chosen = OPTIMIZERS[name], dict(settings.get(name) or {})
    if chosen.pop("bias_correction", True) is not True:
        raise UserError("optimizer_config: PyTorch corrects the bias of its moments always; drop 'bias_correction'")
    if kind in FUSED and not chosen.keys() & {"foreach", "fused"}:
        chosen["fused"] = True  # one pass over all parameters; an adapter's are many and small
    known = [key for key in inspect.signature(kind).parameters if key not in ("params", "lr")]
    check_names(chosen, known, f"optimizer_config: {name}'s")
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        if engine and name in ON_ENGINE and chosen.keys() <= ON_ENGINE_SETTINGS and chosen.pop("fused", True):
            return ON_ENGINE[name](model, trained, lr=rate, **chosen)
        return kind(trained, lr=rate, **chosen)  # type: ignore[call-arg]
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer_config: PyTorch refuses {name}: {str(error).splitlines()[0]}") from error
