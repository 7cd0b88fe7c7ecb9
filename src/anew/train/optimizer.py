"""AdamW and its learning rate: linear warmup, then a cosine down to a tenth."""

import math

import torch
from torch import nn

from anew.optim import EngineAdamW

FINAL_SHARE = 0.1


def make_optimizer(model: nn.Module, weight_decay: float, *, engine: bool = False) -> torch.optim.Optimizer:
    """Return AdamW that decays matrices only: norms and biases (1-D) are left alone.

    With ``engine``, for a compiled model, it reads gradients where the engine wrote them: :mod:`anew.optim`.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    filled = [g for g in groups if g["params"]]
    if engine:
        return EngineAdamW(model, filled, betas=(0.9, 0.95), weight_decay=weight_decay)
    return torch.optim.AdamW(filled, betas=(0.9, 0.95), fused=True)


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Return the learning rate of a step, counted from 0.

    It rises linearly to `peak` in `warmup` steps, then falls as a cosine to a tenth of it at the last step.
    """
    if step < warmup:
        return peak * ((step + 1) / warmup)
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)
