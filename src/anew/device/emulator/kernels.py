"""The engine's arithmetic, one kernel an operation: the reference meaning with the engine's roundings around it.

Arithmetic classes (docs/arithmetic.md has the evidence for each):
    bit-exact   matmul, conv (in ``exact``), data movement, add, sub, mul, maximum, minimum, abs, relu, square
    calibrated  sums (narrow accumulation), softmax, the function tables
    rounded     real_div, pow: fp32 meaning, rounded to fp16; their published errors are of that size

No operation gives NaN: where IEEE would, the result is zero.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from anew.device.emulator.conv import conv2d
from anew.device.emulator.fused import binary, finish_product_
from anew.device.emulator.lookup import TABLES, function_table, look_up
from anew.device.emulator.mac import matmul_exact, matmul_fast, matmul_finished
from anew.device.emulator.reduce import narrow_sum
from anew.device.emulator.rounding import round_elementwise_
from anew.device.emulator.softmax import softmax
from anew.mil import Function, Op, lookup
from anew.mil.ops.attention import attention_scale
from anew.mil.ops.matmul import conv_padding, matmul_operands
from anew.mil.types import is_float

Product = Callable[[Tensor, Tensor, float, float | None, Tensor | None], tuple[Tensor, float]]
Kernel = Callable[..., Any]  # of the tensor operands: a tensor, or a tuple of several results


class Arithmetic:
    """Chooses the kernel of an operation for one chip and one setting of ``numerics``.

    Attributes:
        exact: follow the multiply-accumulate rule bit for bit.
        winograd: whether 3x3 convolutions of stride 1 take Winograd's form.
        slice_limit: largest magnitude that a slice from inside the last axis carries; inf where slices are exact.
    """

    def __init__(self, *, exact: bool, winograd: bool, slice_limit: float) -> None:
        self.exact = exact
        self.winograd = winograd
        self.slice_limit = slice_limit

    def kernel(self, op: Op) -> Kernel:
        """Return a function of the operation's fp16 operands (as float32) that computes its result."""
        definition = lookup(op.kind)
        parameters = _parameters(op)
        special = getattr(self, f"_{op.kind}", None)
        if special is not None:
            return partial(special, **parameters)
        if op.kind in TABLES:
            return partial(look_up, table=function_table(op.kind, **parameters))
        if op.kind in ("add", "sub", "mul"):
            return partial(binary, op.kind)
        meaning = _positional(op, parameters)
        return meaning if definition.family == "move" else partial(_rounded, meaning)

    def product(self, op: Op) -> Product:
        """Return a function of the operands of a matmul or 1x1 convolution, which are on the fp16 grid.

        Further arguments are what the sums are multiplied with before they are rounded, what after it, if anything, and
        an fp16 tensor to write the product to, if any. It returns the product and its largest magnitude before the
        latter factor.
        """
        multiply = self._finished_sums if self.exact else matmul_finished
        if op.kind == "conv":
            return partial(_pointwise, multiply, op.output.shape)
        parameters = _parameters(op)
        return lambda x, y, *factors: multiply(*matmul_operands(x, y, **parameters), *factors)

    def narrow_inputs(self, function: Function) -> set[str]:
        """The inputs that are read as the fp16 they are: those that only matmuls take."""
        if self.exact:
            return set()
        others = {v for op in function.ops if not op.constant and op.kind != "matmul" for v in op.tensors()}
        return {v.name for v in function.inputs if v not in others and v not in function.outputs}

    def _finished_sums(
        self, x: Tensor, y: Tensor, carried: float, factor: float | None, into: Tensor | None
    ) -> tuple[Tensor, float]:
        product = matmul_exact(x, y)
        largest = finish_product_(product, factor, carried)
        return (product if into is None else into.copy_(product)), largest

    def _conv(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        strides: tuple[int, int],
        pad_type: str,
        pad: tuple[int, ...],
        dilations: tuple[int, int],
        groups: int,
    ) -> Tensor:
        """The bias is added to the rounded sums, as ``add`` would."""
        kernel, size = (weight.shape[2], weight.shape[3]), (x.shape[2], x.shape[3])
        padding = conv_padding(pad_type, pad, kernel, strides, dilations, size)
        sums = conv2d(x, weight, strides, padding, dilations, groups, exact=self.exact, winograd=self.winograd)
        return sums if bias is None else round_elementwise_(sums + bias.view(-1, 1, 1))

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        product = self._product(torch.atleast_2d(x), weight.mT).view(*x.shape[:-1], weight.shape[0])
        return product if bias is None else round_elementwise_(product + bias)

    def _scaled_dot_product_attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
    ) -> Tensor:
        """The two products by the array's rule, what is between them rounded step by step."""
        scores = binary("mul", self._product(query, key.mT), torch.tensor(attention_scale(query.shape[-1])))
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = binary("add", scores, attn_mask)
        return self._product(softmax(scores, -1), value)

    def _product(self, x: Tensor, y: Tensor) -> Tensor:
        return matmul_exact(x, y) if self.exact else matmul_fast(x, y)

    def _reduce_sum(self, x: Tensor, axes: tuple[int, ...], keep_dims: bool) -> Tensor:
        return narrow_sum(x, axes, keep_dims)

    def _reduce_mean(self, x: Tensor, axes: tuple[int, ...], keep_dims: bool) -> Tensor:
        total = narrow_sum(x, axes, keep_dims)
        return round_elementwise_(total * (total.numel() / x.numel()))

    def _reduce_max(self, x: Tensor, axes: tuple[int, ...], keep_dims: bool) -> Tensor:
        return x.amax(axes, keep_dims)

    def _reduce_min(self, x: Tensor, axes: tuple[int, ...], keep_dims: bool) -> Tensor:
        return x.amin(axes, keep_dims)

    def _cast(self, x: Tensor, dtype: str) -> Tensor:
        """Round to fp16, toward zero to an integer; values of fp32 keep the fp16 grid, which the engine computes on."""
        if dtype == "bool":
            return (x != 0).float()
        return round_elementwise_(x.contiguous().clone()) if is_float(dtype) else x.trunc()

    def _abs(self, x: Tensor) -> Tensor:
        return x.abs()

    def _softmax(self, x: Tensor, axis: int) -> Tensor:
        return softmax(x, axis)

    def _slice_by_size(self, x: Tensor, begin: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
        part = lookup("slice_by_size").meaning(x, begin=begin, size=size)
        return self._cropped(part, begin[-1] != 0)

    def _slice_by_index(
        self, x: Tensor, begin: tuple[int, ...], begin_mask: tuple[bool, ...] | None, **parameters: Any
    ) -> Tensor:
        part = lookup("slice_by_index").meaning(x, begin=begin, begin_mask=begin_mask, **parameters)
        masked = begin_mask is not None and begin_mask[-1]
        return self._cropped(part, not masked and begin[-1] % x.shape[-1] != 0)

    def _split(self, x: Tensor, axis: int, **parameters: Any) -> tuple[Tensor, ...]:
        first, *others = lookup("split").meaning(x, axis=axis, **parameters)
        return first, *(self._cropped(part, axis % x.dim() == x.dim() - 1) for part in others)

    def _cropped(self, part: Tensor, inside: bool) -> Tensor:
        """A slice; ``inside`` tells that it begins inside the last axis."""
        if not inside or self.slice_limit == math.inf:
            return part
        return part.masked_fill(part > self.slice_limit, math.inf).masked_fill(part < -self.slice_limit, -math.inf)


def _pointwise(
    multiply: Product,
    shape: tuple[int, ...],
    x: Tensor,
    weight: Tensor,
    carried: float,
    factor: float | None,
    into: Tensor | None,
) -> tuple[Tensor, float]:
    """A 1x1 convolution as a product."""
    product, largest = multiply(weight.flatten(1), x.flatten(2), carried, factor, None)
    product = product.view(shape)
    return (product if into is None else into.copy_(product)), largest


def _parameters(op: Op) -> dict[str, Any]:
    """The compile-time parameters of an operation, as Python values; defaults filled in."""
    given: dict[str, Any] = {}
    for param in lookup(op.kind).params:
        operand = op.inputs.get(param.name)
        if param.kind == "const":
            given[param.name] = param.default if operand is None else operand.const  # type: ignore[union-attr]
    return given


def _positional(op: Op, parameters: dict[str, Any]) -> Kernel:
    """The reference meaning as a function of the tensor operands that are given, in order."""
    definition = lookup(op.kind)
    if definition.params[0].kind == "tensors":
        return lambda *values: definition.meaning(values, **parameters)
    tensors = [p.name for p in definition.params if p.is_tensor]
    given = [name for name in tensors if name in op.inputs]
    absent = dict.fromkeys(name for name in tensors if name not in op.inputs)
    if not inspect.isbuiltin(definition.meaning) and _leading(definition.meaning, len(given)) == given:
        return partial(definition.meaning, **absent, **parameters)
    return lambda *values: definition.meaning(**dict(zip(given, values, strict=True)), **absent, **parameters)


def _leading(meaning: Kernel, count: int) -> list[str]:
    return list(inspect.signature(meaning).parameters)[:count]


def _rounded(meaning: Kernel, *operands: Tensor) -> Tensor:
    return round_elementwise_(meaning(*operands).contiguous())
