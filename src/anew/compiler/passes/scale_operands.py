"""Give every operand of a matmul or convolution a power of two, divide it out of the product, and report maxima.

The engine rounds each product of a multiply-accumulate to 2^-16 and overflows at 32752, so operands must be brought
to a fitting range. The factors come in through one input port and differ for each instance of the program; the
maxima that the host needs to choose the next ones go out through one output port. See :mod:`anew.plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from anew.compiler.passes.rewriter import Rewriter, uses_of
from anew.mil import Function, Op, Value
from anew.plan import MAXIMA, SCALES, Operand, Product, ScalePlan

#: The operations of the multiply-accumulate array that a program is lowered to.
PRODUCTS = ("matmul", "conv")


@dataclass
class Scaled:
    """The rewritten function and what the host must know of it.

    ``weight_operands`` gives the operand index of each weight port that the host scales on upload;
    ``output_products`` the product whose scales are still in an output (by position); ``output_rows`` the row of an
    output's maximum, which the host finds.
    """

    function: Function
    scales: ScalePlan
    weight_operands: dict[str, int] = field(default_factory=dict)
    output_products: dict[int, int] = field(default_factory=dict)
    output_rows: dict[int, int] = field(default_factory=dict)


def scale_operands(function: Function, weights: set[str], read: Sequence[int]) -> Scaled:
    """Insert operand scales.

    Args:
        function: the function; its products (matmul, conv) are scaled.
        weights: names of the input ports that are parameters.
        read: positions of the outputs that the host reads. It finds their maxima, so that an overflow is seen.
    """
    return _Scaler(function, weights, read).run()


class _Scaler:
    def __init__(self, function: Function, weights: set[str], read: Sequence[int]) -> None:
        self.function = function
        self.read = read
        self.uses = uses_of(function)
        self.producers = {v: op for op in function.ops for v in op.outputs}
        products = [op for op in function.ops if op.kind in PRODUCTS]
        operands = list(dict.fromkeys(v for op in products for v in op.tensors()))
        self.index = {v: i for i, v in enumerate(operands)}
        self.weights = {v for v in operands if v.name in weights and self._meets_activations(v, weights)}
        dynamic = [v for v in operands if v.const is None and v not in self.weights]
        self.rows = {v: row for row, v in enumerate(dynamic)}
        self.ends = {op: self._output_end(op.output) for op in products}
        inner = [op for op in products if self.ends[op] is None]
        self.inverse_rows = {op: len(dynamic) + i for i, op in enumerate(inner)}
        self.products = {op: i for i, op in enumerate(products)}

    def _meets_activations(self, weight: Value, weights: set[str]) -> bool:
        """Whether a weight is only multiplied with values whose exponents leave room for its own."""
        if weight in self.function.outputs or any(op.kind not in PRODUCTS for op in self.uses[weight]):
            return False
        others = [v for op in self.uses[weight] for v in op.tensors() if v is not weight]
        return len(others) == len(self.uses[weight]) and all(v.const is None and v.name not in weights for v in others)

    def _output_end(self, value: Value) -> int | None:
        """Position of the output that a product reaches through data movement alone, if it goes nowhere else."""
        outputs = [i for i, v in enumerate(self.function.outputs) if v is value]
        if outputs:  # one that stays on the device must not carry scales
            return outputs[0] if outputs[0] in self.read and not self.uses[value] else None
        if len(self.uses[value]) != 1:
            return None
        (use,) = self.uses[value]
        return self._output_end(use.output) if use.kind in ("reshape", "transpose", "slice_by_size") else None

    def run(self) -> Scaled:
        new = Rewriter(self.function)
        self.new = new
        self.maxima: list[Value] = []
        self.product_maxima: dict[Op, int] = {}
        self.output_rows: dict[int, int] = {}
        self.scaled: dict[Value, Value] = {}
        scale_rows = len(self.rows) + len(self.inverse_rows)
        if scale_rows:
            self.scale_port = new.builder.input(SCALES, (scale_rows, 1))
        operand_maxima: dict[Value, int] = {}
        for op in self.function.ops:
            if op.kind not in PRODUCTS:
                new.copy(op)
                continue
            for value in op.tensors():
                if value in self.rows and value not in self.scaled:
                    operand_maxima[value] = self._report(new[value])
                    factor = self._factor(self.rows[value])
                    self.scaled[value] = new.builder.op("mul", hint="scaled", x=new[value], y=factor)
            self._multiply(op)
        results = self._read_by_host()
        plan = ScalePlan(
            operands=tuple(Operand(self.rows.get(v), operand_maxima.get(v)) for v in self.index),
            products=tuple(self._product(op) for op in self.products),
            result_rows=tuple(results),
            scale_rows=scale_rows,
            maxima_rows=len(self.maxima),
        )
        outputs = [new[v] for v in self.function.outputs]
        if self.maxima:
            outputs.append(self._pack())
        return Scaled(
            new.finish(outputs),
            plan,
            {v.name: self.index[v] for v in self.weights},
            {end: self.products[op] for op, end in self.ends.items() if end is not None},
            self.output_rows,
        )

    def _read_by_host(self) -> list[int]:
        """Give the outputs whose maxima the host finds their rows; returns those that are no products."""
        ends = {end: op for op, end in self.ends.items() if end is not None}
        found = [i for i in self.read if self.function.outputs[i] not in self.rows]  # operands report themselves
        self.output_rows = {i: len(self.maxima) + k for k, i in enumerate(found)}
        self.product_maxima |= {op: self.output_rows[end] for end, op in ends.items()}
        return [row for i, row in self.output_rows.items() if i not in ends]

    def _multiply(self, op: Op) -> None:
        """Copy a product over its scaled operands."""
        before = {v: self.new[v] for v in op.tensors()}
        self.new.values.update({v: self.scaled[v] for v in before if v in self.scaled})
        product = self.new.copy(op)
        self.new.values.update(before)
        if op in self.inverse_rows:
            self.product_maxima[op] = self._report(product)
            factor = self._factor(self.inverse_rows[op])
            self.new.values[op.output] = self.new.builder.op("mul", hint="unscaled", x=product, y=factor)

    def _factor(self, row: int) -> Value:
        return self.new.builder.op("slice_by_size", hint="scale", x=self.scale_port, begin=[row, 0], size=[1, 1])

    def _report(self, value: Value) -> int:
        """Add the largest magnitude of a value to the maxima; returns its row."""
        builder = self.new.builder
        magnitude = builder.op("abs", x=value)
        axes = list(range(value.type.rank))
        largest = builder.op("reduce_max", x=magnitude, axes=axes, keep_dims=True)
        self.maxima.append(largest if largest.shape == (1, 1) else builder.op("reshape", x=largest, shape=[1, 1]))
        return len(self.maxima) - 1

    def _pack(self) -> Value:
        if len(self.maxima) == 1:
            return self.new.builder.op("reshape", hint=MAXIMA, x=self.maxima[0], shape=[1, 1])
        return self.new.builder.op("concat", hint=MAXIMA, values=tuple(self.maxima), axis=0, interleave=False)

    def _product(self, op: Op) -> Product:
        left, right = op.tensors()
        return Product(self.index[left], self.index[right], self.inverse_rows.get(op), self.product_maxima[op])
