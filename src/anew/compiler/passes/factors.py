"""Which operands and products of a function have factors, and which numbers of the program these take in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anew.compiler.passes.magnitudes import Known, Magnitudes
from anew.compiler.passes.rewriter import number_of, uses_of
from anew.mil import Function, Op, Value
from anew.plan import Bound

#: The operations of the multiply-accumulate array that a program is lowered to.
PRODUCTS = ("matmul", "conv")
#: A value of a bound between these has no factor, if what it meets has one.
STEADY = 0.25, 64.0
#: Below this, the operand that a value without a factor meets takes a larger one.
SMALL = 4.0


#: A number of the program, such as attention's scale, that a factor beside it takes in.
NUMBERS = 2.0**-6, 1.0
#: What may lie between scores and softmax, which sees their absolute error alone.
_TO_SOFTMAX = {"reshape", "transpose", "add", "concat"}


@dataclass(frozen=True)
class Use:
    """A value as an operand.

    ``lonely`` where it is scaled for what meets small values without factors, ``plain`` where it has none itself.
    """

    value: Value
    lonely: bool = False
    plain: bool = False


class Factors:
    """What is known of a function's products; arguments are those of :func:`.scale_operands.scale_operands`.

    Attributes:
        uses: operations by what they read. ends: the output that a product goes to and nowhere else.
        known: of operands but weights and constants. steady: those without a factor, with their bounds.
        plain: products without scales. operands: of each product. index: their numbers.
        same: numbers in the function that measures.
        rows, inverse_rows: of factors of operands and of products.
        numbers: that these take in. folded: the operations that multiplied by them.
    """

    def __init__(
        self, function: Function, weights: set[str], read: Sequence[int], plain: frozenset[int] | None
    ) -> None:
        self.function = function
        self.lean = plain is not None
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
        self.same = self._find_operands()
        self.without = frozenset(plain or ())
        self.plain |= {self.products[i] for i in self.without}
        self.index = self._find_operands()
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

    def _find_operands(self) -> dict[Use, int]:
        """Number the operands of all products."""
        self.operands = {op: self._operands(op) for op in self.products}
        uses = dict.fromkeys(use for op in self.products for use in self.operands[op])
        return {use: i for i, use in enumerate(uses)}

    def _operands(self, op: Op) -> tuple[Use, Use]:
        left, right = op.tensors()
        if op in self.plain:  # a weight has the exponent that it was uploaded with everywhere
            return Use(left, plain=left not in self.weights), Use(right, plain=right not in self.weights)
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
            found = number_of(op)
            if found is None or not NUMBERS[0] <= found[1] <= NUMBERS[1]:
                continue
            x, number = found
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
