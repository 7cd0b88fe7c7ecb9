"""`python -m bench.exact_matmul`: speed of the exact multiply-accumulate beside torch's float32 product."""

import statistics
import time
from collections.abc import Callable

import torch

from anew.device.emulator.mac import matmul_exact

SHAPES = ((512, 512, 512), (1024, 768, 768), (256, 2048, 768))
"""Rows, depth, columns."""


def operands(rows: int, depth: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an activation and a weight of the usual sizes, on the fp16 grid."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows, depth, generator=generator)
    b = torch.randn(depth, columns, generator=generator) / depth**0.5
    return a.half().float(), b.half().float()


def gflops(shape: tuple[int, int, int], repeats: int = 15) -> dict[str, float]:
    """Return the median GFLOP/s of both products, run in turns so that other load falls on both alike."""
    a, b = operands(*shape)
    products: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "exact": matmul_exact,
        "torch": torch.matmul,
    }
    seconds: dict[str, list[float]] = {name: [] for name in products}
    for turn in range(repeats + 1):
        for name, product in products.items():
            start = time.perf_counter()
            product(a, b)
            if turn:  # the first turn compiles
                seconds[name].append(time.perf_counter() - start)
    flops = 2 * shape[0] * shape[1] * shape[2]
    return {name: flops / statistics.median(times) / 1e9 for name, times in seconds.items()}


def main() -> None:
    """Print one line per shape."""
    for shape in SHAPES:
        rates = gflops(shape)
        size = "x".join(map(str, shape))
        print(f"{size:>14}  exact {rates['exact']:6.1f} GFLOP/s  torch float32 {rates['torch']:6.1f} GFLOP/s")


if __name__ == "__main__":
    main()
