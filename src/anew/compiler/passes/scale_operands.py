"""Give every operand of a matmul or convolution a power of two, divide it out of the product, and report maxima.

The engine rounds each product of a multiply-accumulate to 2^-16 and overflows at 32752, so operands must be brought
to a fitting range. The factors come in through one input port and differ for each instance of the program; the
maxima that the host needs to choose the next ones go out through one output port. See :mod:`anew.plan`.

What the host knows is not measured: ports it writes and results it reads, values with a bound by what was measured
already (:mod:`.magnitudes`). A value that cannot leave the range that suits has no factor either.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from anew.compiler.passes.magnitudes import Known, Magnitudes
from anew.compiler.passes.rewriter import Rewriter, uses_of
from anew.mil import Function, Op, Value
from anew.plan import MAXIMA, SCALES, UNKNOWN, Bound, Operand, Product, ScalePlan

#: The operations of the multiply-accumulate array that a program is lowered to.
PRODUCTS = ("matmul", "conv")
#: A value of a bound between these has no factor, if what it meets has one.
STEADY = 0.25, 64.0
#: Below this, the operand that a value without a factor meets takes a larger one.
SMALL = 4.0


#: A number of the program, such as attention's scale, that a factor beside it takes in.
NUMBERS = 2.0**-6, 1.0
#: What may lie between scores and softmax, which sees their absolute error alone.
_TO_SOFTMAX = {"reshape", "transpose", "add"}


@dataclass(frozen=True)
class Use:
    """A value as an operand.

    ``lonely`` where it is scaled for what meets small values without factors, ``plain`` where it has none itself.
    """

    value: Value
    lonely: bool = False
    plain: bool = False


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
        self.magnitudes = Magnitudes(function, PRODUCTS)
        self.products = [op for op in function.ops if op.kind in PRODUCTS]
        self.ends = {op: self._output_end(op.output) for op in self.products}
        tensors = dict.fromkeys(v for op in self.products for v in op.tensors())
        self.weights = {v for v in tensors if v.name in weights and self._meets_activations(v, weights)}
        self.known: dict[Value, Known] = {}
        for value in tensors:
            if value.const is None and value not in self.weights:
                self.known[value] = self._known(value)
        self.steady = self._steady()
        self.found = {self.magnitudes.root(function.outputs[i]): i for i in read}
        self.plain = {op for op in self.products if self._is_plain(op)}
        self.operands = {op: self._operands(op) for op in self.products}
        uses = dict.fromkeys(use for op in self.products for use in self.operands[op])
        self.index = {use: i for i, use in enumerate(uses)}
        factored = [u for u in self.index if u.value in self.known and u.value not in self.steady and not u.plain]
        self.rows = {use: row for row, use in enumerate(factored)}
        inner = [op for op in self.products if self.ends[op] is None and op not in self.plain]
        self.inverse_rows = {op: len(self.rows) + i for i, op in enumerate(inner)}
        self._fold()

    def _known(self, value: Value) -> Known:
        """What is known of an operand, or that what it holds the elements of is to be measured."""
        return self.magnitudes.of(value) or Known(Bound.of(self.magnitudes.root(value)))

    def _steady(self) -> dict[Value, float]:
        """Operands without a factor, with their bounds: these do not change, and what they meet has a factor."""
        bounds = {v: known.bound.constant() for v, known in self.known.items()}
        fitting = {v: b for v, b in bounds.items() if b is not None and STEADY[0] <= b <= STEADY[1]}

        def meets(value: Value) -> bool:
            others = [v for op in self.uses[value] if op.kind in PRODUCTS for v in op.tensors() if v is not value]
            return bool(others) and all(v in self.known and v not in fitting for v in others)

        return {v: b for v, b in fitting.items() if meets(v)}

    def _operands(self, op: Op) -> tuple[Use, Use]:
        left, right = op.tensors()
        if op in self.plain:
            return Use(left, plain=True), Use(right, plain=True)
        return self._use(left, right), self._use(right, left)

    def _use(self, value: Value, other: Value) -> Use:
        return Use(value, value in self.known and self.steady.get(other, SMALL) < SMALL)

    def _is_plain(self, op: Op) -> bool:
        """Whether a product is of scores that only softmax reads, or of what is added to them, and needs no scales.

        The array's rounding of 2^-16 is far below that of fp16 for scores of 0.1 and more, and an error of softmax as
        small as that for others.
        """
        return all(v in self.known for v in op.tensors()) and self._only_softmax(op.output)

    def _only_softmax(self, value: Value) -> bool:
        uses = self.uses[value]
        if value in self.function.outputs or not uses:
            return False
        return all(
            use.kind == "softmax" or (use.kind in _TO_SOFTMAX and self._only_softmax(use.output)) for use in uses
        )

    def _fold(self) -> None:
        """Find the numbers that the scale of a product before them, or of an operand after them, takes in."""
        self.numbers: dict[Op | Use, float] = {}
        self.folded: set[Op] = set()
        for op in self.function.ops:
            number = _number(op)
            if number is None or not NUMBERS[0] <= number <= NUMBERS[1]:
                continue
            (x,) = (v for v in op.tensors() if not v.constant)
            scale = self._product_before(x) or self._operand_after(op.output)
            if scale is not None and scale not in self.numbers:
                self.numbers[scale] = number
                self.folded.add(op)

    def _product_before(self, value: Value) -> Op | None:
        """The product that a value is, moved, if it has an inverse scale and nothing else reads it."""
        while len(self.uses[value]) == 1 and value not in self.function.outputs:
            op = self.magnitudes.producers.get(value)
            if op is None or op.kind not in ("reshape", "transpose"):
                return op if op in self.inverse_rows else None
            value = next(op.tensors())
        return None

    def _operand_after(self, value: Value) -> Use | None:
        """The operand that a value is, moved, if it has a factor and nothing else reads it."""
        uses = self.uses[value]
        if value in self.function.outputs or not uses:
            return None
        if len(uses) == 1 and uses[0].kind in ("reshape", "transpose"):
            return self._operand_after(uses[0].output)
        if any(op.kind not in PRODUCTS for op in uses):
            return None
        found = {use for op in uses for use in self.operands[op] if use.value is value}
        use = found.pop()
        return use if not found and use in self.rows else None

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
        return {
            "maxima that are known or found by the host": 2 * (measured - self.measured),
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
        if self.ends[op] is None and self._is_measured(op):
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
        bound, number = self._bound(use.value) if use.value in self.known else UNKNOWN, self.numbers.get(use, 1.0)
        if self._is_unknown(use.value):  # what was measured lies before the number
            bound = bound.times(Bound.number(number))
        return Operand(self.rows.get(use), bound, use.lonely, number)

    def _product(self, op: Op) -> Product:
        left, right = (self.index[use] for use in self.operands[op])
        row, number = self.inverse_rows.get(op), self.numbers.get(op, 1.0)
        if op.output in self.places:
            return Product(left, right, row, self.places[op.output], number=number)
        return Product(left, right, row, None, self._bound(op.output), number)


def _number(op: Op) -> float | None:
    """The number that an operation multiplies by, if that is all it does."""
    if op.kind != "mul" or all(v.constant for v in op.tensors()):
        return None
    numbers = [v.const for v in op.tensors() if v.constant and v.type.numel == 1]
    return float(np.asarray(numbers[0]).item()) if len(numbers) == 1 else None
