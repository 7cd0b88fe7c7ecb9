"""Lowering of pooling and its gradients.

No index tensor exists on the engine: the gradient of a maximum goes to the first position of its window that equals it.
An average over windows is a matrix product along each spatial axis, whose transpose is its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from anew.compiler.lowering.table import Lowering, NotLowered, lowers
from anew.compiler.lowering.windows import Windows, put, take, windows
from anew.mil import Value

aten = torch.ops.aten
anew = torch.ops.anew

#: Outside the input of a maximum: fp16's least number.
LEAST = -65504.0


@lowers(anew.max_pool2d.default)
def _max_pool(
    low: Lowering,
    node: Node,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Value:
    if set(dilation) == {1}:
        pad = [padding[0], padding[0], padding[1], padding[1]]
        return low.op("max_pool", x=x, kernel_sizes=kernel, strides=stride, pad_type="custom", pad=pad, ceil_mode=False)
    w = windows(x.shape[2:], kernel, stride, padding, dilation)
    first, *others = (take(low, x, w, tap, LEAST) for tap in w.taps())
    for other in others:
        first = low.op("maximum", x=first, y=other)
    return first


@lowers(anew.max_pool2d_backward.default)
def _max_pool_backward(
    low: Lowering,
    node: Node,
    grad: Value,
    x: Value,
    y: Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Value:
    w = windows(x.shape[2:], kernel, stride, padding, dilation)
    parts: list[Value] = []
    left: Value | None = None  # what no earlier position of the window has taken
    for tap in w.taps():
        equal = low.op("equal", x=take(low, x, w, tap, LEAST), y=y)
        if left is None:
            parts.append(low.select(equal, grad, 0.0))
            left = low.select(equal, 0.0, grad)
        else:
            parts.append(low.select(equal, left, 0.0))
            left = low.select(equal, 0.0, left)
    return _interleaved(low, parts, w) if w.tiles else _scattered(low, parts, w)


def _interleaved(low: Lowering, parts: list[Value], w: Windows) -> Value:
    """Put the values at each position of windows that tile the input side by side."""
    (n, c), (height, width), (kh, kw) = parts[0].shape[:2], w.out, w.kernel
    rows = []
    for i in range(kh):
        row = [low.reshape(p, (n * c * height, width, 1)) for p in parts[i * kw : (i + 1) * kw]]
        joined = low.op("concat", values=tuple(row), axis=2, interleave=False)
        rows.append(low.reshape(joined, (n * c * height, 1, width * kw)))
    x = low.reshape(low.op("concat", values=tuple(rows), axis=1, interleave=False), (n, c, height * kh, width * kw))
    for i in (0, 1):
        x = low.span(x, 2 + i, 0, w.size[i])
    return x


def _scattered(low: Lowering, parts: list[Value], w: Windows) -> Value:
    total = None
    for tap, part in zip(w.taps(), parts, strict=True):
        placed = put(low, part, w, tap)
        total = placed if total is None else low.op("add", x=total, y=placed)
    assert total is not None
    return total


@lowers(aten.avg_pool2d.default)
def _avg_pool(low: Lowering, node: Node, x: Value, *window: Any) -> Value:
    return _along_both(low, x, _averages(x.shape[-2:], *window))


@lowers(aten.avg_pool2d_backward.default)
def _avg_pool_backward(low: Lowering, node: Node, grad: Value, x: Value, *window: Any) -> Value:
    return _along_both(low, grad, [m.T for m in _averages(x.shape[-2:], *window)])


@lowers(aten._adaptive_avg_pool2d.default)
def _adaptive(low: Lowering, node: Node, x: Value, out: Sequence[int]) -> Value:
    return _along_both(low, x, [_adaptive_matrix(*sizes) for sizes in zip(x.shape[-2:], out, strict=True)])


@lowers(aten._adaptive_avg_pool2d_backward.default)
def _adaptive_backward(low: Lowering, node: Node, grad: Value, x: Value) -> Value:
    sizes = zip(x.shape[-2:], grad.shape[-2:], strict=True)
    return _along_both(low, grad, [_adaptive_matrix(*pair).T for pair in sizes])


def _averages(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> list[np.ndarray]:
    if divisor is not None:
        raise NotLowered("avg_pool2d with divisor_override")
    given = [v if len(v) == 2 else (v[0], v[0]) for v in (kernel, stride or kernel, padding)]
    return [_average_matrix(n, k, s, p, ceil_mode, count_include_pad) for n, k, s, p in zip(size, *given, strict=True)]


def _average_matrix(n: int, kernel: int, stride: int, padding: int, ceil_mode: bool, include_pad: bool) -> np.ndarray:
    """[windows, n]: the row of a window averages the positions in it."""
    spare = n + 2 * padding - kernel
    count = (-(-spare // stride) if ceil_mode else spare // stride) + 1
    if (count - 1) * stride >= n + padding:  # torch: the last window starts within the input or its left padding
        count -= 1
    matrix = np.zeros((count, n))
    for row in range(count):
        begin = row * stride - padding
        end = min(begin + kernel, n + padding)
        inside = slice(max(begin, 0), min(end, n))
        matrix[row, inside] = 1 / ((end - begin) if include_pad else (inside.stop - inside.start))
    return matrix


def _adaptive_matrix(n: int, out: int) -> np.ndarray:
    matrix = np.zeros((out, n))
    for row in range(out):
        inside = slice(row * n // out, -(-(row + 1) * n // out))
        matrix[row, inside] = 1 / (inside.stop - inside.start)
    return matrix


def _along_both(low: Lowering, x: Value, matrices: Sequence[np.ndarray]) -> Value:
    """Multiply height by the first matrix [out, in] and width by the second; x has any leading axes."""
    shape = x.shape
    height, width = (low.builder.array(m, "average") for m in matrices)
    x = low.reshape(x, (math.prod(shape[:-2]), *shape[-2:]))
    x = low.matmul(x, low.transpose(width, (1, 0)))
    x = low.matmul(height, x)
    return low.reshape(x, (*shape[:-2], matrices[0].shape[0], matrices[1].shape[0]))
