"""Train a small vision transformer of transformers on the engine: python examples/vision_transformer.py."""

from __future__ import annotations

import torch
from classify import fit
from shapes import NAMES, SIZE
from transformers import ViTConfig, ViTForImageClassification


def main(steps: int = 120) -> float:
    """Train; return the part of unseen pictures that is named right."""
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=SIZE,
        patch_size=4,
        num_channels=1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=len(NAMES),
    )
    model = ViTForImageClassification(config)
    compiled = torch.compile(model, backend="anew", dynamic=False)
    right = fit(lambda pictures: compiled(pictures).logits, list(model.parameters()), steps, rate=3e-3)
    print(f"{right:.0%} of the unseen pictures named right")
    return right


if __name__ == "__main__":
    main()
