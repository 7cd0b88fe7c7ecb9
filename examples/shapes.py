"""Small pictures with labels: a disc, a square, a cross or a ring, not always of one size or in one place, in noise."""

from __future__ import annotations

import torch
from torch import Tensor

NAMES = ("disc", "square", "cross", "ring")
SIZE = 16
NOISE = 0.2


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return pictures, float32 [count, 1, 16, 16], and which shape each shows, int64 [count]; the seed decides all."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(NAMES), (count,), generator=generator)
    radius = 4 + 2 * torch.rand(count, 1, 1, generator=generator)
    center = 7 + 2 * torch.rand(2, count, 1, 1, generator=generator)
    rows = torch.arange(SIZE)[:, None] - center[0]
    columns = torch.arange(SIZE) - center[1]
    far, wide = (rows**2 + columns**2).sqrt(), torch.maximum(rows.abs(), columns.abs())
    thin = torch.minimum(rows.abs(), columns.abs())
    shapes = (far < radius, wide < radius * 0.8, (thin < 1) & (wide < radius), (far - radius).abs() < 1)
    pictures = torch.stack(shapes)[labels, torch.arange(count)].float()
    return (pictures + NOISE * torch.randn(pictures.shape, generator=generator))[:, None], labels
