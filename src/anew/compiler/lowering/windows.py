"""Windows over the two spatial axes of [batch, channels, height, width], in shapes and moves that the engine has.

A tap is one position inside the windows: what every window has at that position is a strided slice of the input.
Strides are taken by reshapes and contiguous slices, of rank 4 at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from anew.compiler.lowering.table import Lowering
from anew.mil import Value


@dataclass(frozen=True)
class Windows:
    """Windows over height and width: ``padding`` is added before the input, ``out`` is how many fit."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    size: tuple[int, int]
    out: tuple[int, int]

    @property
    def tiles(self) -> bool:
        """Whether the windows neither overlap nor leave gaps, except for a rest at the end."""
        return self.kernel == self.stride and set(self.padding) == {0} and set(self.dilation) == {1}

    def extent(self, axis: int) -> int:
        """How many positions a window spans along height (0) or width (1)."""
        return self.dilation[axis] * (self.kernel[axis] - 1) + 1

    def taps(self) -> Iterator[tuple[int, int]]:
        """The positions inside a window, row by row."""
        return ((i, j) for i in range(self.kernel[0]) for j in range(self.kernel[1]))


def windows(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Windows:
    """Windows that lie within the padded input, ``padding`` on either side."""
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
    return Windows(*((a, b) for a, b in (kernel, stride, padding, dilation, size, out)))


def take(low: Lowering, x: Value, w: Windows, tap: tuple[int, int], fill: float = 0.0) -> Value:
    """What each window has at one position: [batch, channels, *w.out]; ``fill`` outside the input."""
    for i in (1, 0):  # the width before rows of ``fill`` come in: M1 and M2 carry no large number through its slices
        begin = tap[i] * w.dilation[i] - w.padding[i]
        x = _every(low, x, 2 + i, begin, w.stride[i], w.out[i], fill)
    return x


def _every(low: Lowering, x: Value, axis: int, begin: int, step: int, count: int, fill: float) -> Value:
    """``count`` positions of an axis, ``step`` apart."""
    if step == 1:
        return low.span(x, axis, begin, begin + count, fill)
    x = low.span(x, axis, begin, begin + count * step, fill)
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    groups = low.reshape(x, (math.prod(before), count, step, math.prod(after)))
    return low.reshape(low.span(groups, 2, 0, 1), (*before, count, *after))


def put(low: Lowering, x: Value, w: Windows, tap: tuple[int, int]) -> Value:
    """The transpose of :func:`take`: values of windows at one position, zeros elsewhere: [batch, channels, *w.size]."""
    for i in (0, 1):
        begin = w.padding[i] - tap[i] * w.dilation[i]
        x = low.span(spread(low, x, 2 + i, w.stride[i]), 2 + i, begin, begin + w.size[i])
    return x


def spread(low: Lowering, x: Value, axis: int, step: int) -> Value:
    """Put ``step - 1`` zeros after each position of an axis."""
    if step == 1:
        return x
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    count = x.shape[axis]
    groups = low.reshape(x, (math.prod(before), count, 1, math.prod(after)))
    return low.reshape(low.span(groups, 2, 0, step), (*before, count * step, *after))


def tiles(low: Lowering, x: Value, w: Windows) -> Value:
    """The windows of a tiling as columns: [batch, channels * kernel, windows]."""
    n, c = x.shape[:2]
    (kh, kw), (height, width) = w.kernel, w.out
    if w.kernel == (1, 1):
        return low.reshape(x, (n, c, height * width))
    for i in (0, 1):
        x = low.span(x, 2 + i, 0, w.out[i] * w.kernel[i])
    x = low.transpose(low.reshape(x, (n * c * height, kh, width, kw)), (0, 2, 1, 3))
    x = low.transpose(low.reshape(x, (n, c, height * width, kh * kw)), (0, 1, 3, 2))
    return low.reshape(x, (n, c * kh * kw, height * width))


def untile(low: Lowering, columns: Value, w: Windows) -> Value:
    """The transpose of :func:`tiles`: [batch, channels, *w.size]."""
    n, rows = columns.shape[:2]
    (kh, kw), (height, width) = w.kernel, w.out
    c = rows // (kh * kw)
    if w.kernel == (1, 1):
        return low.reshape(columns, (n, c, height, width))
    x = low.transpose(low.reshape(columns, (n, c, kh * kw, height * width)), (0, 1, 3, 2))
    x = low.transpose(low.reshape(x, (n * c * height, width, kh, kw)), (0, 2, 1, 3))
    x = low.reshape(x, (n, c, height * kh, width * kw))
    for i in (0, 1):
        x = low.span(x, 2 + i, 0, w.size[i])
    return x
