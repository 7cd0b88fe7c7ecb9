"""What the host adds to a region call, and what capture costs, on a device that computes nothing.

Two widths: at 32 the host's own work shows, at 288 (stories15m) also the conversions between fp32 and fp16. Compile
time is that of the first training step less the median of later ones; it and the program count must not grow with
depth.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import anew
from anew.frontend.session import session_for
from anew.train.memory import keep_freed_memory

DEPTHS, WIDTHS, BATCH, LENGTH, REPEATS = (6, 12, 24), (32, 288), 4, 256, 9


def model(layers: int, width: int) -> LlamaForCausalLM:
    """A Llama of that depth and width, with a small vocabulary: the head stays in PyTorch and is not of interest."""
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 16,
        vocab_size=64,
    )
    return LlamaForCausalLM(config)


def step(net: LlamaForCausalLM, tokens: torch.Tensor) -> tuple[float, float]:
    """Seconds of forward and of backward."""
    net.zero_grad(set_to_none=True)
    start = time.perf_counter()
    loss = net(input_ids=tokens, labels=tokens).loss
    middle = time.perf_counter()
    loss.backward()
    return middle - start, time.perf_counter() - middle


def measure_depth(layers: int, width: int) -> dict[str, Any]:
    """Compile time, programs, and what a region call takes: the difference to a model of one layer, by layer."""
    torch._dynamo.reset()
    session_for.cache_clear()
    gc.collect()  # the memory of the model before
    tokens = torch.randint(0, 64, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    nets = {depth: anew.compile(model(depth, width), device="null", strict=True, loss="apart") for depth in (layers, 1)}
    first = {depth: sum(step(net, tokens)) for depth, net in nets.items()}  # the second finds all compiled
    times: dict[int, list[tuple[float, float]]] = {depth: [] for depth in nets}
    for _ in range(REPEATS):
        for depth, net in nets.items():
            times[depth].append(step(net, tokens))
    forward, backward = (
        {depth: statistics.median(t[way] for t in taken) for depth, taken in times.items()} for way in (0, 1)
    )
    return {
        "compile_seconds": first[layers] - forward[layers] - backward[layers],
        "programs": anew.statistics(nets[layers]).programs,
        "forward_microseconds": 1e6 * (forward[layers] - forward[1]) / (layers - 1),
        "backward_microseconds": 1e6 * (backward[layers] - backward[1]) / (layers - 1),
    }


def measure() -> dict[str, Any]:
    """Figures by width and depth."""
    keep_freed_memory()
    measure_depth(max(DEPTHS), max(WIDTHS))  # touches the memory that the measured ones use
    return {f"width_{width}": {f"layers_{n}": measure_depth(n, width) for n in DEPTHS} for width in WIDTHS}


def main() -> None:
    """Print the figures."""
    for width, depths in measure().items():
        for depth, figures in depths.items():
            print(f"{width}, {depth}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
