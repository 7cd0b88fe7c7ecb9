"""Float32 sums of products, by the quicker of the two libraries that PyTorch brings.

``torch.matmul`` calls MKL, which on processors of other makers than Intel takes kernels for shorter registers than they
have; oneDNN asks the processor. Both add in float32, in orders of their own.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

#: Multiply-accumulates below which the call of oneDNN takes longer than what it saves.
FEWEST = 1 << 20


@functools.cache
def available() -> bool:
    """Whether this build of PyTorch has oneDNN, and the processor the long registers (AVX-512) it has kernels for."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Multiply float32 matrices [..., M, K] and [..., K, N] of any strides, as ``torch.matmul`` does."""
    if b.dim() != 2 or a.dim() < 2 or a.numel() * b.shape[1] < FEWEST or not available():
        return torch.matmul(a, b)
    rows = a.reshape(-1, a.shape[-1])  # all rows of the batch are rows of one product
    sums: Tensor = torch.ops.mkldnn._linear_pointwise(rows, b.mT, None, "none", [], "")
    return sums.view(*a.shape[:-1], b.shape[1])
