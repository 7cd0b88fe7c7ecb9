"""Make weights of a compiled plan constants: products with them become 1x1 convolutions, with kernels to be filled in.

The engine runs a convolution with a constant kernel several times faster than a product of two run-time operands
(facts: conv against matmul, maderix/ANE; weight streaming, ANEForge 0.4.0). A weight's operand scale is a power of two
that the host would apply on upload; here it is folded into the constant, so the arithmetic is that of the plan, bit for
bit, and so is its plan of scales.

In 8 bits a weight is quantized symmetrically for each of its rows, ``weight ~ rows[:, None] * int8``, with the one form
of constant that was seen to run beside a convolution on every chip that has it (oMLX): int8 data and an fp16 scale for
each output channel. Where the rows are input channels (the gradient of a linear layer's input), they are a factor of
the other operand instead, and the constant has the power of two next to the largest of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anew.chips import Chip
from anew.chips.check import check_op, refused
from anew.compiler.passes.rewriter import Rewriter, uses_of
from anew.mil import Function, Op, TensorType, Value, parse_program
from anew.plan import InputPort, Plan

QUANTIZED = "constexpr_blockwise_shift_scale"
#: Largest magnitude of a quantized element.
LEVELS = 127


@dataclass(frozen=True)
class Kernel:
    """A constant of a baked function that a weight fills.

    Attributes:
        port: the input port that it replaces.
        turned: whether the kernel is the transpose of the weight.
        data: the constant itself, fp16, or int8 with ``scale``.
        scale: of int8 data, [output channels, 1, 1, 1].
        factors: what the other operand is multiplied by, one number a row of the weight; of int8 data that is turned.
    """

    port: InputPort
    turned: bool
    data: Value
    scale: Value | None = None
    factors: Value | None = None

    def fill(self, weight: Tensor, exponent: int) -> None:
        """Set the payloads for a weight, float32 [rows, columns], times ``2**exponent``."""
        scaled = weight.detach().float() * 2.0**exponent
        if self.scale is None:
            self.data.const = _kernel(scaled.half(), self.turned)
            return
        rows, codes = quantize(scaled)
        self.data.const = _kernel(codes, self.turned)
        if self.factors is None:
            self.scale.const = rows.reshape(self.scale.shape).numpy()
            return
        top = 2.0 ** math.ceil(math.log2(float(rows.max())))
        self.factors.const = (rows.float() / top).half().reshape(self.factors.shape).numpy()
        self.scale.const = np.full(self.scale.shape, top, np.float16)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return fp16 scales [rows, 1] and int8 codes [rows, columns]; a row of zeros has the smallest normal scale."""
    rows = (weight.abs().amax(1, keepdim=True) / LEVELS).half().clamp_min(2.0**-14)
    return rows, (weight / rows.float()).round().clamp(-LEVELS, LEVELS).to(torch.int8)


def as_quantized(weight: Tensor, exponent: int) -> Tensor:
    """The float32 numbers that stand for a weight in 8 bits, quantized at a scale of ``2**exponent``."""
    rows, codes = quantize(weight.detach().float() * 2.0**exponent)
    return rows.float() * codes * 2.0**-exponent


def _kernel(matrix: Tensor, turned: bool) -> np.ndarray:
    kernel: np.ndarray = (matrix.T if turned else matrix).contiguous()[:, :, None, None].numpy()
    return kernel


@dataclass(frozen=True)
class Baked:
    """A plan's function with constants in place of weights.

    Attributes:
        function: its kernels hold zeros until they are filled. It has the plan's outputs by name.
        kernels: what weights fill.
        inputs: the ports that are left.
        refused: of weights that stayed inputs, why, by port.
    """

    function: Function
    kernels: tuple[Kernel, ...]
    inputs: tuple[InputPort, ...]
    refused: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of the constants that weights fill."""
        found = [v for k in self.kernels for v in (k.data, k.scale, k.factors) if v is not None]
        return sum(v.type.numel * (1 if v.type.dtype == "int8" else 2) for v in found)


def bake(plan: Plan, wanted: Set[str], bits: int, chip: Chip) -> Baked:
    """Return a plan's function in which the ports named in ``wanted`` are constants, as far as that is possible.

    A port can be one when the host scales it as an operand, and every product that reads it multiplies rows by it; each
    operation that replaces the product must be within the chip's rules.
    """
    stay: dict[str, str] = {}
    while True:
        try:
            return _Baker(plan, wanted - stay.keys(), bits, chip, stay).run()
        except _Refused as refusal:
            stay[refusal.port] = refusal.reason


class _Refused(Exception):
    def __init__(self, port: str, reason: str) -> None:
        super().__init__(reason)
        self.port, self.reason = port, reason


class _Baker:
    def __init__(self, plan: Plan, wanted: Set[str], bits: int, chip: Chip, stay: Mapping[str, str]) -> None:
        self.plan, self.bits, self.chip, self.stay = plan, bits, chip, stay
        self.function = parse_program(plan.text, plan.weights).main
        self.uses = uses_of(self.function)
        self.ports = {v: p for v in self.function.inputs for p in plan.inputs if p.name == v.name and v.name in wanted}
        for value, port in self.ports.items():
            self._check(value, port)
        self.new = Rewriter(self.function, keep_names=True)
        self.builder = self.new.builder
        self.builder.inputs = [v for v in self.builder.inputs if v.name not in {p.name for p in self.ports.values()}]
        self.kernels: dict[tuple[Value, bool], tuple[Kernel, Value]] = {}
        self.columns: dict[tuple[Value, bool], Value] = {}
        self.planes: dict[Value, Value] = {}  # products as convolutions give them, by what they were

    def _check(self, value: Value, port: InputPort) -> None:
        if port.operand is None:
            raise _Refused(port.name, "it is not only an operand of products with values computed at run time")
        for op in self.uses[value]:
            x = op.inputs["x"]
            if op.kind != "matmul" or x is value or isinstance(x, tuple) or x.type.rank != 2 or value.type.rank != 2:
                raise _Refused(port.name, f"a {op.kind} other than of two matrices with it on the right reads it")

    def run(self) -> Baked:
        for op in self.function.ops:
            if op.kind == "matmul" and op.inputs["y"] in self.ports:
                self.planes[op.output] = self._convolve(op)
                if op.output in self.function.outputs:
                    self._as_rows(op.output)
            else:
                self._copy(op)
        outputs = [self.new[v] for v in self.function.outputs]
        function = self.new.finish(outputs)
        read = {v for op in function.ops for v in op.operands()}
        function.ops = [op for op in function.ops if op.kind != "const" or op.output in read]
        gone = {p.name for p in self.ports.values()}
        left = tuple(p for p in self.plan.inputs if p.name not in gone)
        return Baked(function, tuple(kernel for kernel, _ in self.kernels.values()), left, dict(self.stay))

    def _copy(self, op: Op) -> None:
        """Copy an operation; the inverse scale of a product is applied before its axes are moved back."""
        planes = [v for v in op.operands() if v in self.planes]
        if op.kind == "mul" and planes and self._one_number(op):
            factor = self.new[_value(op, "y")]
            self.planes[op.output] = self.builder.op("mul", "baked_unscaled", x=self.planes[planes[0]], y=factor)
            self._as_rows(op.output)
        else:
            for value in planes:
                self._as_rows(value)
            self.new.copy(op)

    def _one_number(self, op: Op) -> bool:
        return _value(op, "x") in self.planes and _value(op, "y").type.numel == 1 and _value(op, "y").type.rank <= 4

    def _as_rows(self, value: Value) -> None:
        """Give a product the form that it had: [rows, channels]."""
        if value in self.new.values:
            return
        plane = self.planes[value]
        rows, channels = value.shape
        flat = self.builder.op("reshape", "baked_flat", x=plane, shape=[channels, rows])
        self.new.values[value] = self.builder.op("transpose", value.name, x=flat, perm=[1, 0])

    def _convolve(self, op: Op) -> Value:
        """A product with a weight as a convolution: [1, channels, 1, rows]."""
        x, weight = _value(op, "x"), _value(op, "y")
        channels_first, turned = bool(_value(op, "transpose_x").const), not _value(op, "transpose_y").const
        before = len(self.builder.ops)
        kernel, constant = self._kernel(weight, turned)
        plane = self.builder.op(
            "conv",
            "baked",
            x=self._plane(x, channels_first, kernel.factors),
            weight=constant,
            strides=[1, 1],
            pad_type="valid",
            pad=[0, 0, 0, 0],
            dilations=[1, 1],
            groups=1,
        )
        for new in self.builder.ops[before:]:
            for violation in refused(check_op(new, self.chip, self.builder.producer)):
                raise _Refused(weight.name, str(violation))
        return plane

    def _kernel(self, weight: Value, turned: bool) -> tuple[Kernel, Value]:
        """The kernel [output channels, input channels, 1, 1] of a weight, and the value that it is."""
        if (weight, turned) in self.kernels:
            return self.kernels[weight, turned]
        shape = (*(weight.shape[::-1] if turned else weight.shape), 1, 1)
        port, name = self.ports[weight], f"baked_{weight.name}"
        if self.bits == 16:
            data = value = self.builder.slot(TensorType("fp16", shape), name)
            kernel = Kernel(port, turned, data)
        else:
            data = self.builder.slot(TensorType("int8", shape), f"{name}_codes")
            scale = self.builder.slot(TensorType("fp16", (shape[0], 1, 1, 1)), f"{name}_scale")
            value = self.builder.op(QUANTIZED, name, data=data, scale=scale)
            kind = TensorType("fp16", (1, weight.shape[0], 1, 1))
            factors = self.builder.slot(kind, f"{name}_factors") if turned else None
            kernel = Kernel(port, turned, data, scale, factors)
        self.kernels[weight, turned] = kernel, value
        return kernel, value

    def _plane(self, x: Value, channels_first: bool, factors: Value | None) -> Value:
        """The rows of an operand as [1, channels, 1, rows], times the factors of its channels."""
        if x in self.planes:
            self._as_rows(x)
        if (x, channels_first) not in self.columns:
            matrix = self.new[x]
            if not channels_first:
                matrix = self.builder.op("transpose", "baked_columns", x=matrix, perm=[1, 0])
            shape = [1, matrix.shape[0], 1, matrix.shape[1]]
            self.columns[x, channels_first] = self.builder.op("reshape", "baked_plane", x=matrix, shape=shape)
        plane = self.columns[x, channels_first]
        return plane if factors is None else self.builder.op("mul", "baked_factored", x=plane, y=factors)


def _value(op: Op, name: str) -> Any:
    operand = op.inputs[name]
    assert isinstance(operand, Value)
    return operand
