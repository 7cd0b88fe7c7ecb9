"""The plain PyTorch loop of both picture examples: nothing in it knows of an engine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from shapes import draw
from torch import Tensor
from torch.nn import functional as F

BATCH = 32


def fit(logits: Callable[[Tensor], Tensor], parameters: list[torch.nn.Parameter], steps: int, rate: float) -> float:
    """Train on fresh pictures for so many steps; return the part of 64 others that is named right, 0 to 1."""
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    for step in range(steps):
        pictures, labels = draw(BATCH, seed=step)
        loss = F.cross_entropy(logits(pictures), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"step {step:3}: loss {loss.item():.3f}")
    right = 0.0
    with torch.no_grad():
        for seed in (-1, -2):  # pictures that no step has seen, in the shape of a batch
            pictures, labels = draw(BATCH, seed=seed)
            right += (logits(pictures).argmax(1) == labels).float().mean().item() / 2
    return right
