"""What a program makes the host and the engine do, in units whose price a chip's rates give.

Amounts add: the work of two programs is the sum of theirs, so that a step's time is the sum over its programs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

#: Bytes of one operand that stay on the engine; beyond it a matmul reads from memory again. Sources disagree on the
#: number; 16 MB lies below the first size (4096 x 4096 in fp16, 34 MB) at which every measured chip slows down.
ON_ENGINE_BYTES = 16e6
FP16_BYTES = 2


@dataclass(frozen=True)
class Work:
    """Amounts of work.

    Attributes:
        dispatches: programs started.
        read: elements the host copies to the engine.
        write: elements the host copies back.
        matmul: floating-point operations of matmuls, two a multiply-accumulate.
        spilled: the share of those whose operand had to be fetched from memory again.
        convolution: floating-point operations of convolutions of more than one tap.
        weight_bytes: bytes of constants streamed from memory.
        elementwise: elements of an activation function by itself.
        softmax: elements of softmax.
        norm: elements of a layer or RMS norm.
    """

    dispatches: float = 0.0
    read: float = 0.0
    write: float = 0.0
    matmul: float = 0.0
    spilled: float = 0.0
    convolution: float = 0.0
    weight_bytes: float = 0.0
    elementwise: float = 0.0
    softmax: float = 0.0
    norm: float = 0.0

    def __add__(self, other: Work) -> Work:
        """Return the work of both."""
        return Work(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def __mul__(self, times: float) -> Work:
        """Return this work done ``times`` times."""
        return Work(*(times * amount for amount in dataclasses.astuple(self)))


def matmul(rows: int, inner: int, columns: int) -> Work:
    """Return the work of ``[rows, inner] @ [inner, columns]`` in fp16, the right operand constant; no copies."""
    flops = 2.0 * rows * inner * columns
    operand = FP16_BYTES * float(inner * columns)
    share = max(0.0, 1.0 - ON_ENGINE_BYTES / operand)
    return Work(matmul=flops, spilled=flops * share, weight_bytes=operand)


def convolution(batch: int, channels: int, positions: int, taps: int) -> Work:
    """Return the work of a convolution ``channels -> channels`` at ``positions`` of each of ``batch``; no copies."""
    weights = float(channels * channels * taps)
    return Work(convolution=2.0 * batch * positions * weights, weight_bytes=FP16_BYTES * weights)


def elementwise(elements: int) -> Work:
    """Return the work of a program that is one activation function: its copies and its elements."""
    return Work(read=elements, write=elements, elementwise=elements)


def softmax(elements: int) -> Work:
    """Return the work of a program that is one softmax."""
    return Work(read=elements, write=elements, softmax=elements)


def layer_norm(elements: int) -> Work:
    """Return the work of a program that is one layer norm."""
    return Work(read=elements, write=elements, norm=elements)


def reduction(rows: int, length: int) -> Work:
    """Return the work of a program that sums each of ``rows`` rows of ``length`` elements."""
    return Work(read=rows * length, write=rows)
