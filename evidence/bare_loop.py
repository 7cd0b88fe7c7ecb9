"""A bare PyTorch loop with torch.optim.AdamW and no gradient scaler, on the engine and in plain fp32, side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import anew
from evidence import record

STEPS, BATCH, LENGTH, VOCABULARY = 50, 4, 128, 256


def model() -> LlamaForCausalLM:
    """A byte-level Llama of 4 layers, dim 256."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def losses(net: nn.Module, steps: int = STEPS) -> list[float]:
    """Train on the prose in the repository, byte by byte; returns the loss of every step."""
    text = np.frombuffer((Path(record.ROOT) / "data" / "austen.txt").read_bytes(), np.uint8)
    data = torch.from_numpy(text.astype(np.int64))
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    curve = []
    for _ in range(steps):
        starts = torch.randint(0, len(data) - LENGTH - 1, (BATCH,), generator=generator)
        window = torch.stack([data[s : s + LENGTH + 1] for s in starts.tolist()])
        logits = net(input_ids=window[:, :-1]).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def deviation(curve: list[float], reference: list[float]) -> float:
    """The largest relative difference between two curves at any step."""
    return max(abs(a - b) / b for a, b in zip(curve, reference, strict=True))


def main() -> None:
    """Measure both numerics against plain fp32 and write the record."""
    reference = losses(model())
    figures: dict[str, object] = {"steps": STEPS, "fp32": {"first": reference[0], "last": reference[-1]}}
    for numerics in ("fast", "exact"):
        net = anew.compile(model(), device="emulator", chip="m4", numerics=numerics, strict=True)
        curve = losses(net)
        figures[numerics] = {
            "first": curve[0],
            "last": curve[-1],
            "worst_deviation": deviation(curve, reference),
            "rescaled": anew.statistics(net).rescaled,
            "calibrations": anew.statistics(net).calibrations,
        }
    record.write("bare_loop", figures)
