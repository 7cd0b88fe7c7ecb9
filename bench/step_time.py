"""Seconds of one training step (forward, loss, backward) of stories15m, batch 4 x 256: eager PyTorch and the emulator.

Interleaved in one process, medians, the same allocator setting for all (freed memory is kept).
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import anew
from anew.train.memory import keep_freed_memory
from anew.train.presets import PRESETS

REPEATS, BATCH, LENGTH = 7, 4, 256


def model() -> LlamaForCausalLM:
    """The preset at random initialisation."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**PRESETS["stories15m"].model, use_cache=False))


def step(net: nn.Module, x: torch.Tensor) -> float:
    """Seconds of forward, loss and backward."""
    net.zero_grad(set_to_none=True)
    start = time.monotonic()
    logits = net(input_ids=x[:, :-1]).logits
    nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten()).backward()
    return time.monotonic() - start


def measure() -> dict[str, Any]:
    """Median seconds of a step of each, and the ratios to eager PyTorch."""
    keep_freed_memory()
    nets: dict[str, Any] = {"eager": model()}
    for numerics in ("fast", "exact"):
        nets[numerics] = anew.compile(model(), device="emulator", numerics=numerics, strict=True)
    x = torch.randint(0, 32000, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(5))
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    for repeat in range(REPEATS + 2):
        for name, net in nets.items():
            taken = step(net, x)
            if repeat >= 2:  # the first call compiles, the second fills the pools
                seconds[name].append(taken)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = {f"{name}_over_eager": medians[name] / medians["eager"] for name in ("fast", "exact")}
    return {"median_seconds": medians, **ratios}


def main() -> None:
    """Print the figures."""
    for name, figure in measure().items():
        print(f"stories15m step, {name}: {figure}")


if __name__ == "__main__":
    main()
