"""Lowering of convolutions of one and two dimensions, transposed ones too, and of their gradients.

Three forms, because weights are inputs of a program and the engine convolves with a kernel that is not a constant for
one image only (ANEForge 0.4.0):

* windows that tile the input (kernel = stride, such as patch embeddings and 1x1): a matrix product over the patches
* other windows: ``conv``, the images of a batch one below the other as a single tall one
* the gradient of the weight: a matrix product over the windows of all images

The gradient of the input is a convolution of the cotangent, spread by the stride, with the kernel turned around.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from anew.compiler.lowering.table import Lowering, NotLowered, lowers, shape_of
from anew.compiler.lowering.windows import Windows, spread, take, tiles, untile, windows
from anew.mil import Value

aten = torch.ops.aten


@lowers(aten.convolution.default)
def _convolution(
    low: Lowering,
    node: Node,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    shape = shape_of(node)
    x, weight = _planar(low, x), _planar(low, weight)
    out = _planar_shape(shape)
    w = _windows(out if transposed else x.shape, weight, stride, padding, dilation)
    y = to_input(low, x, weight, w, groups) if transposed else convolve(low, x, weight, w, groups)
    if bias is not None:
        y = low.op("add", x=y, y=low.reshape(bias, (1, out[1], 1, 1)))
    return low.reshape(y, shape)


@lowers(aten.convolution_backward.default)
def _convolution_backward(
    low: Lowering,
    node: Node,
    grad: Value,
    x: Value,
    weight: Value,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Value | None, ...]:
    x_shape, weight_shape = x.shape, weight.shape
    grad, x, weight = (_planar(low, v) for v in (grad, x, weight))
    small, large = (x, grad) if transposed else (grad, x)
    w = _windows(large.shape, weight, stride, padding, dilation)
    to_x = to_weight = to_bias = None
    if wanted[0]:
        back = convolve(low, grad, weight, w, groups) if transposed else to_input(low, grad, weight, w, groups)
        to_x = low.reshape(back, x_shape)
    if wanted[1]:
        to_weight = low.reshape(_to_weight(low, small, large, w, groups), weight_shape)
    if wanted[2]:
        to_bias = _to_bias(low, grad)
    return to_x, to_weight, to_bias


def _planar(low: Lowering, x: Value) -> Value:
    return low.reshape(x, _planar_shape(x.shape))


def _planar_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape with two spatial axes: a row is a plane of height 1."""
    if len(shape) == 3:
        return (*shape[:2], 1, shape[2])
    if len(shape) != 4:
        raise NotLowered(f"a convolution of {list(shape)}; anew takes one or two spatial axes")
    return tuple(shape)


def _windows(
    shape: Sequence[int], weight: Value, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Windows:
    flat = len(stride) == 1
    lead = {"stride": [1] if flat else [], "padding": [0] if flat else [], "dilation": [1] if flat else []}
    return windows(
        shape[2:],
        weight.shape[2:],
        [*lead["stride"], *stride],
        [*lead["padding"], *padding],
        [*lead["dilation"], *dilation],
    )


def convolve(low: Lowering, x: Value, weight: Value, w: Windows, groups: int) -> Value:
    """Convolve x [batch, channels, *w.size] to [batch, kernels, *w.out]."""
    if w.tiles and groups == 1:
        y = low.matmul(_matrix(low, weight), tiles(low, x, w))
        return low.reshape(y, (x.shape[0], weight.shape[0], *w.out))
    begin, end = zip(
        *((-w.padding[i], (w.out[i] - 1) * w.stride[i] + w.extent(i) - w.padding[i]) for i in (0, 1)), strict=True
    )
    for i in (0, 1):
        x = low.span(x, 2 + i, begin[i], end[i])
    return _valid(low, x, weight, w.stride, w.dilation, groups)


def to_input(low: Lowering, grad: Value, weight: Value, w: Windows, groups: int) -> Value:
    """The transpose of :func:`convolve`: from [batch, kernels, *w.out] to [batch, channels, *w.size]."""
    if w.tiles and groups == 1:
        flat = low.reshape(grad, (*grad.shape[:2], math.prod(w.out)))
        return untile(low, low.matmul(low.transpose(_matrix(low, weight), (1, 0)), flat), w)
    for i in (0, 1):
        before = w.extent(i) - 1 - w.padding[i]
        grad = spread(low, grad, 2 + i, w.stride[i])
        grad = low.span(grad, 2 + i, -before, w.size[i] + w.padding[i])
    return _valid(low, grad, _turned(low, weight, groups), (1, 1), w.dilation, groups)


def _matrix(low: Lowering, weight: Value) -> Value:
    return low.reshape(weight, (weight.shape[0], math.prod(weight.shape[1:])))


def _turned(low: Lowering, weight: Value, groups: int) -> Value:
    """The kernels of the transposed convolution: channels exchanged within each group, both axes reversed."""
    kernels, channels, height, width = weight.shape
    grouped = low.reshape(weight, (groups, kernels // groups, channels, height * width))
    swapped = low.transpose(grouped, (0, 2, 1, 3))
    planar = low.reshape(swapped, (groups * channels, kernels // groups, height, width))
    return planar if height * width == 1 else low.op("reverse", x=planar, axes=[2, 3])


def _valid(
    low: Lowering, x: Value, weight: Value, stride: tuple[int, int], dilation: tuple[int, int], groups: int
) -> Value:
    """Convolve a padded input, the images one below the other, each starting at a multiple of the stride."""
    n, c, height, width = x.shape
    rows = -(-height // stride[0]) * stride[0]
    per_image, limit = rows // stride[0], max(low.chip.max_axis // rows, 1)
    if n > limit:
        parts = [low.span(x, 0, i, min(i + limit, n)) for i in range(0, n, limit)]
        return low.op(
            "concat",
            values=tuple(_valid(low, part, weight, stride, dilation, groups) for part in parts),
            axis=0,
            interleave=False,
        )
    extent = dilation[0] * (weight.shape[2] - 1) + 1
    out = (height - extent) // stride[0] + 1
    tall = low.reshape(low.transpose(low.span(x, 2, 0, rows), (1, 0, 2, 3)), (1, c, n * rows, width))
    y = low.op(
        "conv",
        x=tall,
        weight=weight,
        strides=stride,
        pad_type="custom",
        pad=[0, max(extent - stride[0], 0), 0, 0],  # so that the last image gives as many rows as the others
        dilations=dilation,
        groups=groups,
    )
    images = low.reshape(y, (weight.shape[0], n, per_image, y.shape[3]))
    return low.transpose(low.span(images, 2, 0, out), (1, 0, 2, 3))


def _to_weight(low: Lowering, small: Value, large: Value, w: Windows, groups: int) -> Value:
    """Gradient of the weight [kernels, channels / groups, *w.kernel]: each window times what came out of it."""
    n, kernels = small.shape[:2]
    channels, taps, length = large.shape[1], math.prod(w.kernel), math.prod(w.out)
    if w.tiles:
        columns = low.reshape(tiles(low, large, w), (n, channels, taps, length))
    else:
        parts = [low.reshape(take(low, large, w, tap), (n * channels, 1, length)) for tap in w.taps()]
        columns = parts[0] if taps == 1 else low.op("concat", values=tuple(parts), axis=1, interleave=False)
        columns = low.reshape(columns, (n, channels, taps, length))
    columns = low.reshape(low.transpose(columns, (1, 2, 0, 3)), (groups, channels // groups * taps, n, length))
    rows = low.transpose(low.reshape(small, (n, kernels, length)), (1, 0, 2))
    product = _contract(low, low.reshape(rows, (groups, kernels // groups, n, length)), columns)
    return low.reshape(product, (kernels, channels // groups, *w.kernel))


def _to_bias(low: Lowering, grad: Value) -> Value:
    """Sum over batch and positions, as a product with ones: the array sums exactly."""
    n, kernels, height, width = grad.shape
    rows = low.transpose(low.reshape(grad, (n, kernels, height * width)), (1, 0, 2))
    ones = low.builder.array(np.ones((1, 1, n, height * width)), "ones")
    total = _contract(low, low.reshape(rows, (1, kernels, n, height * width)), ones)
    return low.reshape(total, (kernels,))


def _contract(low: Lowering, x: Value, y: Value) -> Value:
    """``sum over n, l of x[g, a, n, l] * y[g, b, n, l]``, as many images at a time as the longest axis takes."""
    n, length = x.shape[2:]
    most = max(low.chip.max_axis // length, 1)
    total: Any = None
    for first in range(0, n, most):
        a, b = (low.span(v, 2, first, min(first + most, n)) for v in (x, y))
        a, b = (low.reshape(v, (*v.shape[:2], v.shape[2] * length)) for v in (a, b))
        part = low.matmul(a, low.transpose(b, (0, 2, 1)))
        total = part if total is None else low.op("add", x=total, y=part)
    return total
