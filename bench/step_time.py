"""Seconds and peak memory of one training step: eager PyTorch, torch.compile (inductor) and the emulated engine.

Each contender trains in a process of its own, so that its peak is its own; the parent lets them step in turn and takes
medians. All have the same allocator setting (freed memory is kept), the same fused AdamW and the same batches.
"""

from __future__ import annotations

import multiprocessing
import shutil
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import anew
from anew.train.memory import keep_freed_memory, peak_memory
from anew.train.presets import PRESETS

LENGTH = 256
BATCHES = {"stories15m": 4, "stories110m": 1}
REPEATS, WARM = 7, 2
"""Steps that count, and those before: the first compiles, the second fills the pools."""

CONTENDERS: dict[str, Callable[[nn.Module], Any]] = {
    "eager": lambda net: net,
    "compiled": torch.compile,
    "fast": lambda net: anew.compile(net, device="emulator", numerics="fast", strict=True),
    "exact": lambda net: anew.compile(net, device="emulator", numerics="exact", strict=True),
}


def model(preset: str) -> LlamaForCausalLM:
    """The preset at random initialisation."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**PRESETS[preset].model, use_cache=False))


def train(connection: Connection, preset: str, contender: str) -> None:
    """In a process of its own: take a step whenever asked and answer with its seconds; at the end, the peak in GB."""
    keep_freed_memory()
    net = CONTENDERS[contender](model(preset))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(5)
    while connection.recv():
        x = torch.randint(0, 32000, (BATCHES[preset], LENGTH + 1), generator=generator)
        start = time.monotonic()
        logits = net(input_ids=x[:, :-1]).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        connection.send(time.monotonic() - start)
    connection.send(peak_memory())


def contenders() -> list[str]:
    """Those that can run here: inductor needs a C++ compiler."""
    compiler = any(map(shutil.which, ("g++", "clang++", "c++")))
    return [name for name in CONTENDERS if name != "compiled" or compiler]


def in_turn(
    target: Callable[..., None], arguments: dict[str, tuple[str, ...]], repeats: int = REPEATS
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Let processes step in turn; returns the seconds of the steps that count, and the peaks in GB, by name."""
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    for name, given in arguments.items():
        ends[name], other = context.Pipe()
        context.Process(target=target, args=(other, *given), daemon=True).start()
        other.close()  # so that a contender that dies is an EOFError here
    seconds: dict[str, list[float]] = {name: [] for name in arguments}
    for repeat in range(WARM + repeats):
        for name, end in ends.items():
            end.send(True)
            taken = end.recv()
            if repeat >= WARM:
                seconds[name].append(taken)
    for end in ends.values():
        end.send(False)
    return seconds, {name: end.recv() for name, end in ends.items()}


def measure(preset: str) -> dict[str, Any]:
    """Median seconds of a step and peak GB of each, and the ratios to eager PyTorch and to the better of its two."""
    seconds, peaks = in_turn(train, {name: (preset, name) for name in contenders()})
    return {"batch": BATCHES[preset], "length": LENGTH, "repeats": REPEATS} | figures(seconds, peaks)


def figures(seconds: dict[str, list[float]], peaks: dict[str, float]) -> dict[str, Any]:
    """Medians and ratios; without a compiler there is no ``compiled``, and eager is the better."""
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    better = min(medians[name] for name in ("eager", "compiled") if name in medians)
    found: dict[str, Any] = {"median_seconds": medians, "peak_gigabytes": peaks}
    for name in ("fast", "exact"):
        found[f"{name}_over_eager"] = medians[name] / medians["eager"]
        found[f"{name}_over_better"] = medians[name] / better
        found[f"{name}_memory_over_eager"] = peaks[name] / peaks["eager"]
    return found


def main() -> None:
    """Print the figures."""
    for preset in BATCHES:
        for name, figure in measure(preset).items():
            print(f"{preset} step, {name}: {figure}")


if __name__ == "__main__":
    main()
