"""Seconds of a step of ``anew train``'s loop: PyTorch's AdamW, the engine's, and the engine's beside the next forward.

Each contender trains in a process of its own; the parent lets them step in turn and takes medians. ``waiting`` trains
on a device that computes nothing and takes a fixed time for each program, as a real engine does while the host is free.
"""

from __future__ import annotations

import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn

import anew
from anew.device.null import NullOperation
from anew.optim import EngineAdamW
from anew.train.memory import keep_freed_memory, peak_memory
from anew.train.optimizer import make_optimizer
from anew.train.pretraining import train_step
from bench.step_time import BATCHES, LENGTH, in_turn, model

CONTENDERS = ("torch", "engine", "overlap")
#: Steps that count: those of the emulator take seconds.
REPEATS = 5
#: Seconds that a program of ``waiting`` takes.
WAIT = 0.02
#: The norm that gradients are clipped to, as ``anew train`` has it.
CLIP = 1.0

_zeros = NullOperation._execute


def wait(operation: NullOperation) -> None:
    """What a program of ``waiting`` does: its results are numbers, or no scale would fit them."""
    end = time.monotonic() + WAIT
    _zeros(operation)
    time.sleep(max(0.0, end - time.monotonic()))


def optimizer_of(net: nn.Module, contender: str) -> torch.optim.Optimizer:
    """That of ``anew train``; ``torch``: as it was before, ``overlap``: in a thread."""
    made = make_optimizer(net, 0.1, engine=contender != "torch")
    if isinstance(made, EngineAdamW):
        groups = [{k: g[k] for k in ("params", "weight_decay")} for g in made.param_groups]
        return EngineAdamW(net, groups, betas=(0.9, 0.95), overlap=contender == "overlap")
    return made


def train(connection: Connection, preset: str, device: str, contender: str) -> None:
    """In a process of its own: take a step whenever asked and answer with its seconds; at the end, the peak in GB."""
    keep_freed_memory()
    if device == "waiting":
        NullOperation._execute = wait  # type: ignore[method-assign, assignment]
    net = anew.compile(model(preset), device="null" if device == "waiting" else device, strict=True)
    optimizer = optimizer_of(net, contender)
    generator = torch.Generator().manual_seed(5)
    while connection.recv():
        x = torch.randint(0, 32000, (BATCHES[preset], LENGTH + 1), generator=generator)
        start = time.monotonic()
        if device == "waiting":  # the loss region keeps head and loss off the host
            optimizer.zero_grad(set_to_none=True)
            net(input_ids=x[:, :-1], labels=x[:, :-1]).loss.backward()
            optimizer.step()
        else:
            train_step(net, optimizer, [(x[:, :-1], x[:, 1:])], CLIP)
        connection.send(time.monotonic() - start)
    connection.send(peak_memory())


def measure(preset: str, device: str) -> dict[str, Any]:
    """Median seconds of a step and peak GB of each, and how many times as fast as PyTorch's the engine's are."""
    seconds, peaks = in_turn(train, {name: (preset, device, name) for name in CONTENDERS}, REPEATS)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = [[t / s for t, s in zip(seconds["torch"], seconds[name], strict=True)] for name in CONTENDERS[1:]]
    return {
        "median_seconds": medians,
        "speedup": {name: statistics.median(r) for name, r in zip(CONTENDERS[1:], ratios, strict=True)},
        "peak_gigabytes": peaks,
    }


def main() -> None:
    """Print the figures."""
    for preset in BATCHES:
        for device in ("emulator", "waiting"):
            for name, figure in measure(preset, device).items():
                print(f"{preset} step of anew train on {device}, {name}: {figure}")


if __name__ == "__main__":
    main()
