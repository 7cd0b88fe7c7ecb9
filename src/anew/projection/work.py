"""What a program makes the host and the engine do, in units whose price a chip's rates give.

Amounts add: the work of two programs is the sum of theirs, so that a step's time is the sum over its programs.
"""

from __future__ import annotations

import operator
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
        read: elements that a host's program hands to the engine, its copy and the engine's own reading in one.
        write: elements it takes back, likewise.
        matmul: floating-point operations of matmuls, two a multiply-accumulate.
        spilled: the share of those whose operand had to be fetched from memory again.
        convolution: floating-point operations of convolutions of more than one tap.
        weight_bytes: bytes of operands that a program streams, wherever they lie.
        fetched: those of them that come from memory, because the operands of what runs do not fit on the engine.
        activation: elements of an activation function in a program of its own.
        softmax: elements of a softmax in a program of its own.
        norm: elements of a layer or RMS norm.
        elementwise: elements of an operation inside a program of several: one for each pass over them.
        attention: elements of a softmax inside a program of several.
    """

    dispatches: float = 0.0
    read: float = 0.0
    write: float = 0.0
    matmul: float = 0.0
    spilled: float = 0.0
    convolution: float = 0.0
    weight_bytes: float = 0.0
    fetched: float = 0.0
    activation: float = 0.0
    softmax: float = 0.0
    norm: float = 0.0
    elementwise: float = 0.0
    attention: float = 0.0

    def __add__(self, other: Work) -> Work:
        """Return the work of both."""
        return Work(*map(operator.add, vars(self).values(), vars(other).values()))

    def __mul__(self, times: float) -> Work:
        """Return this work done ``times`` times."""
        return Work(*(times * amount for amount in vars(self).values()))


def streamed(size: float, of: float | None = None) -> Work:
    """Return the work of streaming ``size`` bytes of operands in a program that holds ``of`` bytes and runs repeatedly.

    What fits on the engine stays there between runs; of the rest the engine fetches every byte.
    """
    share = max(0.0, 1.0 - ON_ENGINE_BYTES / max(of or size, 1.0))
    return Work(weight_bytes=size, fetched=size * share)


def from_memory(size: float) -> Work:
    """Return the work of streaming bytes that no run before has left on the engine, as those of a whole model."""
    return Work(weight_bytes=size, fetched=size)


def matmul(rows: int, inner: int, columns: int) -> Work:
    """Return the work of ``[rows, inner] @ [inner, columns]`` in fp16, the right operand constant; no copies."""
    flops = 2.0 * rows * inner * columns
    operand = FP16_BYTES * float(inner * columns)
    share = max(0.0, 1.0 - ON_ENGINE_BYTES / operand)
    return Work(matmul=flops, spilled=flops * share) + streamed(operand)


def convolution(batch: int, channels: int, positions: int, taps: int) -> Work:
    """Return the work of a convolution ``channels -> channels`` at ``positions`` of each of ``batch``; no copies.

    One of a single tap is the product of a matrix. The kernels of others serve so many positions that the engine has
    them before it needs them: streaming them takes no time of its own.
    """
    weights = float(channels * channels * taps)
    flops = 2.0 * batch * positions * weights
    return Work(convolution=flops) if taps > 1 else Work(matmul=flops) + streamed(FP16_BYTES * weights)


def activation(elements: int) -> Work:
    """Return the work of a program that is one activation function: its copies and its elements."""
    return Work(read=elements, write=elements, activation=elements)


def softmax(elements: int) -> Work:
    """Return the work of a program that is one softmax."""
    return Work(read=elements, write=elements, softmax=elements)


def layer_norm(elements: int) -> Work:
    """Return the work of a program that is one layer norm."""
    return Work(read=elements, write=elements, norm=elements)


def reduction(rows: int, length: int) -> Work:
    """Return the work of a program that sums each of ``rows`` rows of ``length`` elements."""
    return Work(read=rows * length, write=rows)
