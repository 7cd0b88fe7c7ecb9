"""Let products read and give matrices the other way round, where these would be transposed before or after them.

A matmul takes either operand transposed; its result is transposed if its operands change places. Attention's keys are
such an operand, and their gradient such a result, between reshapes of the axes before the last two.
"""

from __future__ import annotations

from anew.compiler.passes.eliminate_dead import eliminate_dead
from anew.compiler.passes.rewriter import Rewriter, uses_of
from anew.mil import Function, Op, Value


def turn_products(function: Function) -> Function:
    """Return the function without transposes of the last two axes between a product and what is read or made of it."""
    return _Turner(function).run()


class _Turner:
    def __init__(self, function: Function) -> None:
        self.function = function
        self.producers = {v: op for op in function.ops for v in op.outputs}
        self.uses = uses_of(function)
        self.new = Rewriter(function)

    def run(self) -> Function:
        for op in self.function.ops:
            product = self._product_before(op)
            if product is not None:
                turned = self._product(product, turned=True)
                self.new.values[op.output] = self._reshaped(turned, op.output.shape)
            elif op.kind == "matmul":
                self.new.values[op.output] = self._product(op)
            else:
                self.new.copy(op)
        return eliminate_dead(self.new.finish([self.new[v] for v in self.function.outputs]))

    def _product_before(self, op: Op) -> Op | None:
        """The product that an operation transposes, if nothing else reads it."""
        if not _turns(op):
            return None
        source, odd = self._source(op.output)
        product, value = self.producers.get(source), source
        while odd and product is not None and product.kind == "matmul" and value not in self.function.outputs:
            if len(self.uses[value]) != 1:
                return None
            if self.uses[value] == [op]:
                return product
            value = self.uses[value][0].output
        return None

    def _source(self, value: Value) -> tuple[Value, bool]:
        """What has a value's matrices, its last two axes, in their order; and whether they are transposed there."""
        odd = False
        while (op := self.producers.get(value)) is not None and (_turns(op) or _keeps_matrices(op)):
            odd ^= _turns(op)
            value = next(op.tensors())
        return value, odd

    def _product(self, op: Op, turned: bool = False) -> Value:
        sides = [self._operand(op, name) for name in ("x", "y")]
        (x, turned_x), (y, turned_y) = [(v, not flag) for v, flag in sides[::-1]] if turned else sides
        product = self.new.builder.op("matmul", x=x, y=y, transpose_x=turned_x, transpose_y=turned_y)
        product.bound = op.output.bound
        return product

    def _operand(self, op: Op, name: str) -> tuple[Value, bool]:
        value, flag = op.inputs[name], op.inputs[f"transpose_{name}"]
        assert isinstance(value, Value)
        assert isinstance(flag, Value)
        source, odd = self._source(value)
        if not odd:
            return self.new[value], bool(flag.const)
        return self._reshaped(self.new[source], (*value.shape[:-2], *source.shape[-2:])), not flag.const

    def _reshaped(self, value: Value, shape: tuple[int, ...]) -> Value:
        return value if value.shape == shape else self.new.builder.op("reshape", x=value, shape=shape)


def _turns(op: Op) -> bool:
    """Whether an operation exchanges the last two axes and does nothing else."""
    perm = op.inputs.get("perm")
    if op.kind != "transpose" or not isinstance(perm, Value) or len(perm.const) < 2:
        return False
    *others, last, before = perm.const
    return [*others, before, last] == list(range(len(perm.const)))


def _keeps_matrices(op: Op) -> bool:
    """Whether an operation reshapes the axes before the last two."""
    return op.kind == "reshape" and op.output.shape[-2:] == next(op.tensors()).shape[-2:]
