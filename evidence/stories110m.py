"""The 109M-parameter Llama-2-architecture model: two training steps in ``fast`` and in ``exact``, beside plain fp32."""

from __future__ import annotations

import gc
import math
import resource
import time
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import anew
from anew.train.memory import keep_freed_memory
from anew.train.presets import PRESETS
from evidence import record

STEPS, LENGTH = 2, 256


def train(net: nn.Module, steps: int = STEPS) -> dict[str, Any]:
    """Take AdamW steps on random tokens, batch 1; returns losses and seconds a step."""
    generator = torch.Generator().manual_seed(4)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    losses, seconds = [], []
    for _ in range(steps):
        start = time.monotonic()
        x = torch.randint(0, 32000, (1, LENGTH + 1), generator=generator)
        logits = net(input_ids=x[:, :-1]).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.monotonic() - start)
    return {"losses": losses, "seconds_first": seconds[0], "seconds_last": seconds[-1]}


def model() -> LlamaForCausalLM:
    """The preset at random initialisation."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**PRESETS["stories110m"].model, use_cache=False))


def main() -> None:
    """Train two steps each way and write the record; freed memory is kept for all alike."""
    keep_freed_memory()
    figures: dict[str, Any] = {"parameters": sum(p.numel() for p in model().parameters()), "steps": STEPS}
    figures["fp32"] = train(model())
    for numerics in ("fast", "exact"):
        gc.collect()
        net = anew.compile(model(), device="emulator", chip="m4", numerics=numerics, strict=True)
        found = train(net)
        pairs = zip(found["losses"], figures["fp32"]["losses"], strict=True)
        found["worst_deviation"] = max(abs(a - b) / b for a, b in pairs)
        found["programs"] = anew.statistics(net).programs
        found["finite"] = all(math.isfinite(x) for x in found["losses"])
        figures[numerics] = found
    figures["peak_gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    record.write("stories110m", figures)
