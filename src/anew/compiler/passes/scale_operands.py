"""Give every operand of a matmul or convolution a power of two, divide it out of the product, and report maxima.

The engine rounds each product of a multiply-accumulate to 2^-16 and overflows at 32752, so operands must be brought
to a fitting range. The factors come in through one input port and differ for each instance of the program; the
maxima that the host needs to choose the next ones go out through one output port. See :mod:`anew.plan`.

What the host knows is not measured: ports it writes and results it reads, values with a bound by what was measured
already (:mod:`.magnitudes`). A value that cannot leave the range that suits has no factor either.

A lean function measures nothing, and its products of given numbers have no factors: the host found out that they need
none (:mod:`anew.frontend.scales`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from anew.compiler.passes.factors import PRODUCTS, Factors, Use
from anew.compiler.passes.magnitudes import Known
from anew.compiler.passes.rewriter import Rewriter
from anew.mil import Function, Op, Value
from anew.plan import MAXIMA, SCALES, UNKNOWN, Bound, Operand, Product, ScalePlan


@dataclass
class Scaled:
    """The rewritten function and what the host must know of it.

    Attributes:
        weight_operands: the operand index of each weight port that the host scales on upload.
        output_products: the product whose scales are still in an output (by position).
        output_rows, port_rows: the row of the maximum of an output, of an input port, that the host finds.
        output_bounds: of outputs that the host does not read.
        spared: passes over elements that the function does without, by the reason.
    """

    function: Function
    scales: ScalePlan
    weight_operands: dict[str, int] = field(default_factory=dict)
    output_products: dict[int, int] = field(default_factory=dict)
    output_rows: dict[int, int] = field(default_factory=dict)
    port_rows: dict[str, int] = field(default_factory=dict)
    output_bounds: dict[int, Bound[int]] = field(default_factory=dict)
    spared: dict[str, int] = field(default_factory=dict)


def scale_operands(
    function: Function, weights: set[str], read: Sequence[int], plain: frozenset[int] | None = None
) -> Scaled:
    """Insert operand scales.

    Args:
        function: the function; its products (matmul, conv) are scaled.
        weights: names of the input ports that are parameters.
        read: positions of the outputs that the host reads. It finds their maxima, so that an overflow is seen.
        plain: numbers of the products without scales, in a lean function; None for one that measures.
    """
    return _Scaler(function, weights, read, plain).run()


class _Scaler(Factors):
    def run(self) -> Scaled:
        self.new = new = Rewriter(self.function)
        self.maxima: list[Value] = []
        self.measured = 0
        self.places: dict[Hashable, int] = {}  # rows, of products, of measured values and of ports
        self.scaled: dict[Use, Value] = {}
        scale_rows = len(self.rows) + len(self.inverse_rows)
        if scale_rows:
            self.scale_port = new.builder.input(SCALES, (scale_rows, 1))
        for op in self.function.ops:
            if op in self.folded:
                new.values[op.output] = next(new[v] for v in op.tensors() if not v.constant)
                continue
            if op.kind not in PRODUCTS:
                new.copy(op)
                continue
            for use in self.operands[op]:
                if use in self.rows and use not in self.scaled:
                    if not self.lean:
                        self._measure(use.value)
                    factor = self._factor(self.rows[use])
                    self.scaled[use] = new.builder.op("mul", hint="scaled", x=new[use.value], y=factor)
            self._multiply(op)
        outputs = [new[v] for v in self.function.outputs]
        if self.maxima:
            outputs.append(self._pack())
        output_rows, results = self._read_by_host()
        bounds = {i: self._bound(v) for i, v in enumerate(self.function.outputs) if i not in self.read}
        plan = ScalePlan(
            operands=tuple(self._operand(use) for use in self.index),
            products=tuple(self._product(op) for op in self.products),
            result_rows=results,
            scale_rows=scale_rows,
            maxima_rows=len(self.maxima),
            plain=self.without,
        )
        port_rows = {v.name: self.places[v.name] for v in self.function.inputs if v.name in self.places}
        return Scaled(
            new.finish(outputs),
            replace(plan, found_rows=len(output_rows) + len(port_rows)),
            {use.value.name: i for use, i in self.index.items() if use.value in self.weights},
            {end: self.products.index(op) for op, end in self.ends.items() if end is not None},
            output_rows,
            port_rows,
            bounds,
            self._spared(),
        )

    def _spared(self) -> dict[str, int]:
        """Beside a function that measures and scales every operand, product and result by itself."""

        def total(values: Iterable[Value]) -> int:
            return sum(value.type.numel for value in values)

        read = [self.function.outputs[i] for i in self.read if i not in self.ends.values()]
        measured = total(self.known) + total(op.output for op in self.products) + total(read)
        scaled = total(self.known) + total(op.output for op in self.products if self.ends[op] is None)
        factors = total(use.value for use in self.rows) + total(op.output for op in self.inverse_rows)
        maxima = "maxima left to calls that measure," if self.lean else "maxima that are known or found by the host"
        return {
            maxima: 2 * (measured - self.measured),
            "scales left out or joined with numbers": scaled - factors + total(op.output for op in self.folded),
        }

    def _measure(self, value: Value) -> None:
        """Report an operand, if its bound is its own maximum and nothing that holds its elements was reported."""
        root = self.magnitudes.root(value)
        if self._is_unknown(value) and root not in self.places and root not in self.found:
            self.places[root] = self._report(self.new[value])

    def _is_unknown(self, value: Value) -> bool:
        return value in self.known and self.known[value].bound == Bound.of(self.magnitudes.root(value))

    def _read_by_host(self) -> tuple[dict[int, int], tuple[int, ...]]:
        """The rows of the outputs whose maxima the host finds, and those of them that are no products."""
        found = {i: len(self.maxima) + k for k, i in enumerate(self.read)}
        ends = {end: op for op, end in self.ends.items() if end is not None}
        self.places |= {op.output: found[end] for end, op in ends.items()}
        self.places |= {v: found[i] for v, i in self.found.items() if v not in self.places and i not in ends}
        self.host_rows = len(self.maxima) + len(found)
        return found, tuple(row for i, row in found.items() if i not in ends)

    def _bound(self, value: Value) -> Bound[int]:
        """A value's bound over rows of the maxima; empty where it depends on what nobody measures."""
        if self.lean:
            return UNKNOWN
        known = self.known.get(value) or self.magnitudes.of(value) or Known(Bound.of(self.magnitudes.root(value)))
        factors = known.bound.factors()
        if any(not isinstance(f, str) and f not in self.places for f in factors):
            return UNKNOWN
        return known.bound.renamed(self._place)

    def _place(self, factor: Hashable) -> int:
        """The row of a maximum; that of a port is made on first use."""
        if factor not in self.places:
            self.places[factor] = self.host_rows
            self.host_rows += 1
        return self.places[factor]

    def _multiply(self, op: Op) -> None:
        """Copy a product over its scaled operands."""
        before = {use.value: self.new[use.value] for use in self.operands[op]}
        self.new.values.update({use.value: self.scaled[use] for use in self.operands[op] if use in self.scaled})
        product = self.new.copy(op)
        self.new.values.update(before)
        if self.ends[op] is None and not self.lean and self._is_measured(op):
            self.places[op.output] = self._report(product)
        if op in self.plain:
            self.new.values[op.output] = product
        if op in self.inverse_rows:
            factor = self._factor(self.inverse_rows[op])
            self.new.values[op.output] = self.new.builder.op("mul", hint="unscaled", x=product, y=factor)

    def _is_measured(self, op: Op) -> bool:
        known = self.magnitudes.of(op.output)
        return known is None or known.bound == Bound.of(op.output)

    def _factor(self, row: int) -> Value:
        return self.new.builder.op("slice_by_size", hint="scale", x=self.scale_port, begin=[row, 0], size=[1, 1])

    def _report(self, value: Value) -> int:
        """Add the largest magnitude of a value to the maxima; returns its row."""
        builder = self.new.builder
        self.measured += value.type.numel
        magnitude = builder.op("abs", x=value)
        axes = list(range(value.type.rank))
        largest = builder.op("reduce_max", x=magnitude, axes=axes, keep_dims=True)
        self.maxima.append(largest if largest.shape == (1, 1) else builder.op("reshape", x=largest, shape=[1, 1]))
        return len(self.maxima) - 1

    def _pack(self) -> Value:
        if len(self.maxima) == 1:
            return self.new.builder.op("reshape", hint=MAXIMA, x=self.maxima[0], shape=[1, 1])
        return self.new.builder.op("concat", hint=MAXIMA, values=tuple(self.maxima), axis=0, interleave=False)

    def _operand(self, use: Use) -> Operand:
        bound, number = UNKNOWN if use.value in self.weights else self._bound(use.value), self.numbers.get(use, 1.0)
        if self._is_unknown(use.value):  # what was measured lies before the number
            bound = bound.times(Bound.number(number))
        return Operand(self.rows.get(use), bound, use.lonely, number, self.same.get(use) if self.lean else None)

    def _product(self, op: Op) -> Product:
        left, right = (self.index[use] for use in self.operands[op])
        row, number = self.inverse_rows.get(op), self.numbers.get(op, 1.0)
        if op.output in self.places:
            return Product(left, right, row, self.places[op.output], number=number)
        return Product(left, right, row, None, self._bound(op.output), number)
