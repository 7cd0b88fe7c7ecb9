"""Speed of the exact matmul on this machine's cores, beside torch's fp32 matmul, interleaved."""

from __future__ import annotations

from bench.exact_matmul import SHAPES, gflops
from evidence import record


def main() -> None:
    """Measure each shape and write the record."""
    rates = {"x".join(map(str, shape)): gflops(shape) for shape in SHAPES}
    exact = [rate["exact"] for rate in rates.values()]
    record.write("exact_matmul", {"gflops": rates, "slowest_exact": min(exact)})
