"""Cases of test_lowering: norms, convolutions, pooling, activations, comparisons, slices."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from anew.compiler import custom_ops  # noqa: F401  (registers torch.ops.anew)

aten, ops = torch.ops.aten, torch.ops.anew
X = (2, 3, 8)
IMAGES = (2, 4, 8, 8)


@dataclass
class Case:
    """A function, the shapes of its inputs, and the overloads that compiling it must lower.

    ``scale`` multiplies the inputs; ``positive`` keeps them away from 0; ``inputs`` are further ones without gradients.
    """

    function: object
    overloads: tuple = ()
    shapes: tuple = (X,)
    positive: bool = False
    backward: bool = True
    tolerance: float = 2e-3
    inputs: tuple = field(default=())
    scale: float = 1.0


def conv(x, weight, *rest, **options):
    """A convolution with bias, its operands in the order of their shapes."""
    return Case(
        lambda x, w, b: F.conv2d(x, w, b, *rest, **options),
        (aten.convolution.default, aten.convolution_backward.default),
        (x, weight, weight[:1]),
    )


def transposed(x, weight, channels, *rest):
    return Case(lambda x, w, b: F.conv_transpose2d(x, w, b, *rest), (), (x, weight, (channels,)))


def set_rows(x, y, index):
    result = x.clone()
    result[:, index] = y
    return result


COMPARISONS = {
    name: Case(lambda x, y, f=f: torch.where(f(x, y), x, y * 2), (getattr(aten, name).Tensor, aten.where.self), (X, X))
    for name, f in {
        "gt": torch.gt,
        "ge": torch.ge,
        "lt": torch.lt,
        "le": torch.le,
        "eq": torch.eq,
        "ne": torch.ne,
    }.items()
} | {
    f"{name} a number": Case(lambda x, f=f: torch.where(f(x, 0.25), x, 0.5), (getattr(aten, name).Scalar,))
    for name, f in {
        "gt": torch.gt,
        "ge": torch.ge,
        "lt": torch.lt,
        "le": torch.le,
        "eq": torch.eq,
        "ne": torch.ne,
    }.items()
}

LOGIC = {
    "logical and": Case(lambda x, y: x * torch.logical_and(x > y, y < 1).float(), (aten.logical_and.default,), (X, X)),
    "bitwise and": Case(lambda x, y: x * ((x > y) & (y < 1)), (aten.bitwise_and.Tensor,), (X, X)),
    "logical or": Case(lambda x, y: x * torch.logical_or(x > y, y < 1), (aten.logical_or.default,), (X, X)),
    "bitwise or": Case(lambda x, y: x * ((x > y) | (y < 1)), (aten.bitwise_or.Tensor,), (X, X)),
    "logical xor": Case(lambda x, y: x * torch.logical_xor(x > y, y < 1), (aten.logical_xor.default,), (X, X)),
    "bitwise xor": Case(lambda x, y: x * ((x > y) ^ (y < 1)), (aten.bitwise_xor.Tensor,), (X, X)),
    "logical not": Case(lambda x: x * torch.logical_not(x > 0), (aten.logical_not.default,)),
    "bitwise not": Case(lambda x: x * ~(x > 0), (aten.bitwise_not.default,)),
    "truth of numbers": Case(lambda x: x * F.relu(x).bool(), (aten._to_copy.default,)),
    "where between numbers": Case(lambda x: x * torch.where(x > 0.25, 2.0, 0.5)),
    "masked fill": Case(lambda x: x.masked_fill(x < 0, 0.125), (aten.masked_fill.Scalar,)),
    "masked by minus infinity": Case(lambda x: torch.softmax(x.masked_fill(x < 0, -torch.inf), -1), tolerance=4e-3),
    "a mask as input": Case(lambda x, mask: torch.where(mask, x, x * x), inputs=(torch.arange(8).remainder(3) == 0,)),
    "clamp": Case(lambda x: x.clamp(-0.75, 0.5), (aten.clamp.default,)),
    "clamp by tensors": Case(lambda x, y: x.clamp(y - 1, y), (aten.clamp.Tensor,), (X, X)),
    "clamp min": Case(lambda x: x.clamp_min(-0.5), (aten.clamp_min.default,)),
    "clamp min tensor": Case(lambda x, y: aten.clamp_min.Tensor(x, y), (aten.clamp_min.Tensor,), (X, X)),
    "clamp max": Case(lambda x: x.clamp_max(-0.5), (aten.clamp_max.default,)),
    "clamp max tensor": Case(lambda x, y: aten.clamp_max.Tensor(x, y), (aten.clamp_max.Tensor,), (X, X)),
    "maximum with ties": Case(lambda x: torch.maximum(F.relu(x), -x.clamp(max=0)) * torch.maximum(x, x)),
    "minimum with ties": Case(lambda x, y: torch.minimum(x.clamp(min=0), y.clamp(min=0)), (), (X, X)),
    "sign": Case(lambda x: x * torch.sign(x), (aten.sign.default,)),
    "abs backward": Case(torch.abs, (aten.sgn.default,)),
    "relu backward": Case(torch.relu, (aten.relu.default,)),
}

ACTIVATIONS = {
    "relu squared": Case(lambda x: F.relu(x).square()),
    "relu6": Case(F.relu6, scale=5.0),
    "leaky relu": Case(F.leaky_relu),
    "prelu": Case(F.prelu, (aten._prelu_kernel.default, aten._prelu_kernel_backward.default), (X, (3,))),
    "elu": Case(F.elu),
    # by way of tanh(x / 2), whose table is lines between knots: 0.4 % off near zero
    "elu of small numbers": Case(F.elu, (aten.expm1.default,), scale=1e-2, tolerance=6e-3),
    "elu of large numbers": Case(F.elu, scale=30.0),
    "selu": Case(F.selu),
    "celu": Case(lambda x: F.celu(x, 0.5)),
    "softplus": Case(F.softplus, (aten.softplus.default, aten.softplus_backward.default), scale=2.0),
    "softplus of large numbers": Case(F.softplus, scale=1e3),
    # far out the gate is 1 + tanh, near -1 + 1
    "softplus of negative numbers": Case(lambda x: F.softplus(-x.abs() * 6), tolerance=4e-3),
    "softplus with a threshold": Case(lambda x: F.softplus(x, beta=2, threshold=3)),
    "logsigmoid": Case(F.logsigmoid, scale=3.0),
    "mish": Case(F.mish, scale=3.0),
    "mish of large numbers": Case(F.mish, scale=300.0),
    "hardtanh": Case(F.hardtanh),
    "hardsigmoid": Case(F.hardsigmoid, scale=3.0),
    "hardswish": Case(F.hardswish, scale=3.0),
    "softshrink": Case(F.softshrink),
    "hardshrink": Case(F.hardshrink),
    "softsign": Case(F.softsign),
    "glu": Case(F.glu),
    "quick gelu": Case(lambda x: x * torch.sigmoid(1.702 * x)),
    "new gelu": Case(lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3.0))))),
    "soft cap": Case(lambda x: torch.tanh(x / 50) * 50, scale=60.0),
    "erf": Case(torch.erf, (aten.erf.default,)),
    "sin and cos": Case(lambda x: torch.sin(x) * torch.cos(x * 2), (aten.sin.default, aten.cos.default)),
    "log": Case(torch.log, (aten.log.default,), positive=True),
    "log1p": Case(lambda x: torch.log1p(x * x), (aten.log1p.default,)),
    "log1p of small numbers": Case(torch.log1p, scale=1e-2),
    "expm1": Case(torch.expm1),
    "power of tensors": Case(torch.pow, (aten.pow.Tensor_Tensor,), (X, X), positive=True),
    "log softmax": Case(lambda x: torch.log_softmax(x * 4, -1)),
    "logsumexp": Case(lambda x: torch.logsumexp(x, (0, -1)), (aten.logsumexp.default,)),
    "logsumexp of large numbers": Case(lambda x: torch.logsumexp(x, -1), scale=1e3),
    "rsub": Case(lambda x: torch.rsub(x, 2, alpha=3), (aten.rsub.Scalar,)),
    "addcmul": Case(lambda x, y: torch.addcmul(x, x, y, value=0.5), (aten.addcmul.default,), (X, X)),
    "addcdiv": Case(lambda x, y: torch.addcdiv(x, x, y, value=0.5), (), (X, X), positive=True),
    "lerp": Case(lambda x, y: torch.lerp(x, y, 0.3), (aten.lerp.Scalar,), (X, X)),
    "lerp by a tensor": Case(torch.lerp, (aten.lerp.Tensor,), (X, X, X)),
    "baddbmm": Case(lambda x, y, z: torch.baddbmm(x, y, z, beta=0.5, alpha=2), (), ((2, 3, 5), (2, 3, 4), (2, 4, 5))),
}

MOVEMENT = {
    "select": Case(lambda x: x[:, -1] * x[:, 0], (aten.select.int, aten.select_backward.default)),
    "stack": Case(lambda x, y: torch.stack([x, -y], -1), (aten.stack.default,), (X, X)),
    "unbind": Case(lambda x: (lambda a, b, c: a * b + c)(*x.unbind(1)), (aten.unbind.int,)),
    "unbind the first": Case(lambda x: (lambda a, b: a * b)(*x.unbind())),
    "split": Case(lambda x: (lambda a, b: a * b)(*(x * 2).split(4, -1)), (aten.split.Tensor,)),
    "split sizes": Case(
        lambda x: (lambda a, b, c: a * b.sum(-1, keepdim=True) + c)(*x.split([3, 2, 3], -1)),
        (aten.split_with_sizes.default,),
    ),
    "chunk": Case(lambda x: (lambda a, b, c: a * b * c)(*x.chunk(3, 1))),
    "repeat": Case(lambda x: x.repeat(5, 1, 2, 1), (aten.repeat.default,)),
    "repeat interleave": Case(lambda x: x.repeat_interleave(2, 1)),
    "expand by five": Case(lambda x: x.expand(5, 3, 8).reshape(15, 8) * 2, (), ((1, 3, 8),)),
    "roll": Case(lambda x: x.roll((1, -3), (1, 2)), (aten.roll.default,)),
    "roll flat": Case(lambda x: x.roll(5)),
    "flip": Case(lambda x: x.flip(1, -1) * x, (aten.flip.default,)),
    "pad": Case(lambda x: F.pad(x, (1, 2)), (aten.constant_pad_nd.default,)),
    "pad and crop": Case(lambda x: F.pad(x, (-1, 2, 0, -1), value=0.5)),
    "triangles": Case(lambda x: x.triu() * x.tril(1), (aten.triu.default, aten.tril.default)),
    "zeros": Case(lambda x: x + torch.zeros(3, 8), (aten.zeros.default,)),
    "zeros like": Case(lambda x: torch.cat([x, torch.zeros_like(x)], 1), (aten.zeros_like.default,)),
    "new zeros": Case(lambda x: torch.cat([x, x.new_zeros(2, 1, 8)], 1), (aten.new_zeros.default,)),
    "ones": Case(lambda x: torch.cat([x, torch.ones(2, 5, 8)], 1), (aten.ones.default,)),
    "ones like": Case(lambda x: torch.cat([x, torch.ones_like(x)], 1), (aten.ones_like.default,)),
    "new ones": Case(lambda x: x * x.new_ones(8), (aten.new_ones.default,)),
    "full": Case(lambda x: torch.cat([x, torch.full((2, 5, 8), 0.5)], 1), (aten.full.default,)),
    "full like": Case(lambda x: torch.cat([x, torch.full_like(x, 0.5)], 1), (aten.full_like.default,)),
    "new full": Case(lambda x: torch.cat([x, x.new_full((2, 1, 8), 0.5)], 1), (aten.new_full.default,)),
    "fill": Case(lambda x: torch.cat([x, torch.empty_like(x).fill_(3.0)]), (aten.empty_like.default, aten.fill.Scalar)),
    "a row set": Case(
        lambda x, y: set_rows(x, y, 1), (aten.copy.default, aten.select_scatter.default), (X, (2, 8)), backward=False
    ),
    "rows set": Case(
        lambda x, y: set_rows(x, y, slice(1, 3)), (aten.slice_scatter.default,), (X, (2, 2, 8)), backward=False
    ),
    "einsum": Case(lambda x, y: torch.einsum("bij,bkj->bik", x, y), (), (X, X)),
    "conv1d of gpt2": Case(lambda b, x, w: torch.addmm(b, x.view(-1, 8), w).view(2, 3, 12), (), ((12,), X, (8, 12))),
}

AFFINE = (X, (8,), (8,))
STANDARDIZE = (ops.standardize.default, ops.standardize_backward.default)
CHANNELS = (IMAGES, (4,), (4,))
NORMS = {
    "layer norm": Case(lambda x, w, b: F.layer_norm(x, (8,), w, b), STANDARDIZE, AFFINE),
    "layer norm of large numbers": Case(lambda x, w, b: F.layer_norm(x, (8,), w, b), (), AFFINE, scale=1e3),
    "layer norm of the largest": Case(lambda x: F.layer_norm(x, (8,)), scale=2e4),
    "layer norm of small numbers": Case(lambda x: F.layer_norm(x, (8,), eps=1e-12), scale=1e-4),
    "layer norm without bias": Case(lambda x, w: F.layer_norm(x, (8,), w), (), (X, (8,))),
    "layer norm of two axes": Case(lambda x: F.layer_norm(x, (3, 8))),
    "layer norm of equal numbers": Case(lambda x: x + F.layer_norm(x * 0 + 100, (8,))),
    "group norm": Case(lambda x, w, b: F.group_norm(x, 2, w, b), (), CHANNELS),
    "batch norm": Case(lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (), CHANNELS),
    "batch norm of large numbers": Case(lambda x: F.batch_norm(x, None, None, training=True), (), (IMAGES,), scale=1e3),
    "batch norm of rows": Case(lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (), ((6, 4), (4,), (4,))),
    "var": Case(lambda x: x.var(-1), (aten.var.correction,)),
    "var of all": Case(lambda x: x * x.var(keepdim=True, dim=(0, 1, 2), correction=0)),
    "std": Case(lambda x: x.std((0, 2), keepdim=True) * x, (aten.std.correction,)),
    "std of large numbers": Case(lambda x: x.std(-1), scale=1e3),
    "norm": Case(lambda x: x.norm(dim=-1), (aten.linalg_vector_norm.default,)),
    "norm of large numbers": Case(lambda x: x.norm(dim=-1), scale=1e3),
    "normalize": Case(lambda x: F.normalize(x, dim=-1), scale=1e3),
    "amax": Case(lambda x: x.amax(-1), (ops.amax.default, ops.amax_backward.default)),
    "amax of ties": Case(lambda x: F.relu(x).amax((0, 2), keepdim=True) + (-F.relu(x)).amax(1, True)),
    "amin": Case(lambda x: torch.amin(x, 1, keepdim=True)),
    "aten amin": Case(lambda x: aten.amin.default(x, [1]), (aten.amin.default,), backward=False),
    "aten amax": Case(lambda x: aten.amax.default(x, [1]), (aten.amax.default,), backward=False),
}

CONVOLUTIONS = {
    "conv": conv(IMAGES, (6, 4, 3, 3)),
    "conv padded": conv(IMAGES, (6, 4, 3, 3), padding=1),
    "conv of stride 2": conv(IMAGES, (6, 4, 3, 3), 2, 1),
    "conv of odd windows": conv((3, 4, 11, 9), (6, 4, 5, 3), (3, 2), (2, 0), (1, 2)),
    "conv padded beyond the kernel": conv((1, 4, 5, 5), (6, 4, 3, 3), 1, 4),
    "conv of groups": conv(IMAGES, (6, 2, 3, 3), 1, 1, 1, 2),
    "conv depthwise": conv(IMAGES, (4, 1, 3, 3), 2, 1, 1, 4),
    "conv 1 x 1": conv(IMAGES, (6, 4, 1, 1)),
    "conv 1 x 1 of stride 2": conv(IMAGES, (6, 4, 1, 1), 2),
    "conv of patches": conv(IMAGES, (6, 4, 4, 4), 4),
    "conv of patches with a rest": conv(IMAGES, (6, 4, 3, 3), 3),
    "conv of rows": Case(lambda x, w, b: F.conv1d(x, w, b, 2, 1), (), ((2, 4, 9), (6, 4, 3), (6,))),
    "conv of small numbers": Case(lambda x, w: F.conv2d(x, w), (), (IMAGES, (6, 4, 3, 3)), scale=4e-2),
    "conv transposed": transposed(IMAGES, (4, 6, 3, 3), 6, 2, 1, 1),
    "conv transposed of patches": transposed(IMAGES, (4, 6, 2, 2), 6, 2),
    "conv transposed of groups": transposed(IMAGES, (4, 3, 3, 3), 6, 2, 1, 0, 2),
}

POOLING = {
    "max pool": Case(
        lambda x: F.max_pool2d(F.relu(x), 2), (ops.max_pool2d.default, ops.max_pool2d_backward.default), (IMAGES,)
    ),
    "max pool with a rest": Case(lambda x: F.max_pool2d(F.relu(x), 3), (), (IMAGES,)),
    "max pool of overlapping windows": Case(nn.MaxPool2d(3, 2, 1), (), (IMAGES,)),
    "max pool of ties": Case(lambda x: F.max_pool2d(F.relu(x), (3, 2), (2, 1), (1, 0)), (), (IMAGES,)),
    "max pool dilated": Case(lambda x: F.max_pool2d(x, 2, 1, 0, 2), (), (IMAGES,)),
    "average pool": Case(
        lambda x: F.avg_pool2d(x, 2), (aten.avg_pool2d.default, aten.avg_pool2d_backward.default), (IMAGES,)
    ),
    "average pool of valid values": Case(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (), (IMAGES,)),
    "average pool rounded up": Case(lambda x: F.avg_pool2d(x, (3, 5), 2, 1, True), (), (IMAGES,)),
    "adaptive average to one": Case(lambda x: F.adaptive_avg_pool2d(x, 1), (), (IMAGES,)),
    "adaptive average": Case(
        lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
        (aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d_backward.default),
        (IMAGES,),
    ),
}

CASES = COMPARISONS | LOGIC | ACTIVATIONS | MOVEMENT | NORMS | CONVOLUTIONS | POOLING
