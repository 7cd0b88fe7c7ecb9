"""One training run four times from one seed: plain fp32, fast, exact, and exact as others scale: a loss scale alone.

A Llama of 4M parameters learns prose byte by byte. Everything but the arithmetic of its layers is equal: weights, order
of the data, optimizer, schedule. The last run shows what the engine's arithmetic costs without operand scales.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import anew
from anew.train.data import ValidationBatch, Windows, split, validation_batches
from anew.train.optimizer import learning_rate, make_optimizer
from anew.train.pretraining import evaluate, mean_loss
from evidence import record

STEPS, BATCH, LENGTH, VOCABULARY = 300, 2, 128, 256
PEAK_RATE, WARMUP, CLIP = 2e-3, 20, 1.0
VALIDATE_EVERY, VALIDATION_BATCHES = 50, 16
LOSS_SCALE = 256.0
#: Options of anew.compile, loss scale, and how the plot names the run; no options: plain PyTorch.
RUNS: dict[str, tuple[dict[str, str] | None, float, str]] = {
    "fp32": (None, 1.0, "plain PyTorch, fp32"),
    "fast": ({"numerics": "fast"}, 1.0, "emulated engine, fast"),
    "exact": ({"numerics": "exact"}, 1.0, "emulated engine, exact"),
    "loss_scale_only": (
        {"numerics": "exact", "scaling": "none"},
        LOSS_SCALE,
        "exact, a loss scale of 256 alone",
    ),
}


@dataclass
class Curve:
    """The training loss of every step, and validation losses by step."""

    train: list[float] = field(default_factory=list)
    validation: dict[int, float] = field(default_factory=dict)


def model() -> LlamaForCausalLM:
    """A byte-level Llama of 5 layers, dim 256, 4.08M parameters; always the same weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=5,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def data() -> tuple[Windows, list[ValidationBatch]]:
    """Training windows and validation batches of the prose in the repository, as bytes."""
    text = np.frombuffer((Path(record.ROOT) / "data" / "austen.txt").read_bytes(), np.uint8)
    train, held_out = split(text, LENGTH)
    return Windows(train, LENGTH, seed=0), validation_batches(held_out, LENGTH, BATCH, VALIDATION_BATCHES)


def step(
    net: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[torch.Tensor, torch.Tensor], scale: float
) -> float:
    """One step of AdamW, with the loss multiplied by ``scale`` before backward and the gradients divided by it after.

    Gradients that are not finite are left out, as a gradient scaler does.
    """
    optimizer.zero_grad(set_to_none=True)
    loss = mean_loss(net, *batch)
    (loss * scale).backward()
    for p in net.parameters():
        if p.grad is not None:
            p.grad /= scale
    if nn.utils.clip_grad_norm_(net.parameters(), CLIP).isfinite():
        optimizer.step()
    return loss.item()


def train(options: dict[str, str] | None, scale: float, steps: int = STEPS) -> Curve:
    """Train the model from its seed; ``options`` as in :data:`RUNS`."""
    windows, held_out = data()
    net: Any = model()
    if options is not None:
        net = anew.compile(net, device="emulator", chip="m4", **options)
    optimizer = make_optimizer(net, weight_decay=0.1)
    curve = Curve()
    net.train()
    for done in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(done, steps, PEAK_RATE, WARMUP)
        curve.train.append(step(net, optimizer, windows.batch(done, BATCH), scale))
        if (done + 1) % VALIDATE_EVERY == 0 or done + 1 == steps:
            curve.validation[done + 1] = evaluate(net, held_out)
    return curve


def plot(curves: dict[str, Curve], path: Path) -> None:
    """Draw the validation losses and, thin, the training losses, averaged over ten steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, curve) in enumerate(curves.items()):
        means = np.convolve(curve.train, np.full(10, 0.1), mode="valid")
        axes.plot(np.arange(10, len(means) + 10), means, color=f"C{index}", linewidth=0.8, alpha=0.5)
        steps, losses = zip(*curve.validation.items(), strict=True)
        axes.plot(steps, losses, color=f"C{index}", marker="o", linestyle="--" if index else "-", label=RUNS[name][2])
    axes.set_xlabel("step")
    axes.set_ylabel("loss: nats per byte")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    partial = path.with_suffix(".partial")
    figure.savefig(partial, format="png", dpi=120)
    partial.rename(path)


def main() -> None:
    """Train all four, write the record and the plot."""
    curves = {name: train(options, scale) for name, (options, scale, _) in RUNS.items()}
    reference = curves["fp32"].validation[STEPS]
    figures: dict[str, Any] = {
        "steps": STEPS,
        "parameters": sum(p.numel() for p in model().parameters()),
        "loss_scale": LOSS_SCALE,
    }
    for name, curve in curves.items():
        last = curve.validation[STEPS]
        figures[name] = {
            "validation": {str(at): loss if math.isfinite(loss) else None for at, loss in curve.validation.items()},
            "last": last if math.isfinite(last) else None,
            "over_fp32": last / reference - 1 if math.isfinite(last) else None,
            "train_every_10": [loss if math.isfinite(loss) else None for loss in curve.train[9::10]],
        }
    plot(curves, record.FOLDER / "parity-loss.png")
    record.write("parity", figures)
