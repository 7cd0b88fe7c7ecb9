"""Float32 sums of products, by the quicker of the two libraries that PyTorch brings.

``torch.matmul`` calls MKL, which on processors of other makers than Intel takes kernels for shorter registers than they
have; oneDNN asks the processor. Both add in float32, in orders of their own.
"""

from __future__ import annotations

import functools
import threading

import torch
from torch import Tensor

from anew.device.emulator.rounding import widen

#: Multiply-accumulates below which the call of oneDNN takes longer than what it saves.
FEWEST = 1 << 20


@functools.cache
def available() -> bool:
    """Whether this build of PyTorch has oneDNN, and the processor the long registers (AVX-512) it has kernels for."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


_wide = threading.local()
"""Memory of each thread for operands as float32: fresh memory would cost more than what is written to it."""


def float32_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Multiply fp16 or float32 matrices as ``torch.matmul`` does float32 ones; a NaN of an fp16 one counts as infinity.

    Args:
        a: [..., M, K]; any strides. b: [..., K, N], likewise; the leading axes broadcast.

    Returns:
        Float32 [..., M, N].
    """
    a, b = _widened(a, "left"), _widened(b, "right")
    if b.dim() != 2 or a.dim() < 2 or a.numel() * b.shape[1] < FEWEST or not available():
        return torch.matmul(a, b)
    rows = a.reshape(-1, a.shape[-1])  # all rows of the batch are rows of one product
    sums: Tensor = torch.ops.mkldnn._linear_pointwise(rows, b.mT, None, "none", [], "")
    return sums.view(*a.shape[:-1], b.shape[1])


def _widened(x: Tensor, side: str) -> Tensor:
    """An operand as float32; one of fp16 in memory that holds it until the next operand of that side."""
    if x.dtype != torch.float16:
        return x
    kept = vars(_wide).get(side)
    if kept is None or kept.numel() < x.numel():
        kept = torch.empty(x.numel())
        setattr(_wide, side, kept)
    return widen(x, kept[: x.numel()].view(x.shape))
