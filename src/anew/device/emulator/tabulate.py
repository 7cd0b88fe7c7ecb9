"""Arithmetic on one tensor and constants is a function of one fp16 number: a chain of it becomes one table.

So the engine's sigmoid or the derivative of SiLU, some nine operations each with its own rounding, take one pass over
memory and give the same bits, as every entry of the table is computed by those operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from anew.device.emulator.lookup import PLACES, TABLES, Table, tabulate
from anew.mil import Op, Value

KINDS = {"add", "sub", "mul", *TABLES}
LEAST = PLACES
"""Elements that make a table worth its while."""

Evaluate = Callable[[Op, list[Tensor]], Tensor]


class Tabulation:
    """The chains of a function: what each value that ends in a chain is a table of.

    Attributes:
        tables: by each value that is to be looked up, its argument and its table.
        chained: the operations that these replace.
    """

    def __init__(self, ops: list[Op], constants: Mapping[str, Tensor], needed: Iterable[Value], run: Evaluate) -> None:
        self.constants = constants
        self.run = run
        self.links: dict[Value, Op] = {}
        self.roots: dict[Value, Value] = {}
        for op in ops:
            self._link(op)
        deep = {v: op for v, op in self.links.items() if any(x in self.roots for x in op.tensors())}
        read = {v for op in ops if not (op.kind in KINDS and op.output in deep) for v in op.tensors()} | set(needed)
        self.tables = {v: (self.roots[v], self._table(v)) for v in deep if v in read}
        self.chained = {op for v, op in self.links.items() if v in deep or v not in read}

    def _link(self, op: Op) -> None:
        """Note an operation whose result depends on one tensor of its shape, and on which."""
        if op.kind not in KINDS or op.output.type.numel < LEAST:
            return
        variables = {self.roots.get(v, v) for v in op.tensors() if not v.constant}
        constants = [v for v in op.tensors() if v.constant]
        if len(variables) == 1 and all(v.type.numel == 1 for v in constants):
            (root,) = variables
            if root.shape == op.output.shape:
                self.links[op.output], self.roots[op.output] = op, root

    def _table(self, value: Value) -> Table:
        return tabulate(lambda x: self._compute(value, {self.roots[value]: x}))

    def _compute(self, value: Value, known: dict[Value, Tensor]) -> Tensor:
        """A value by the operations that lead to it, each computed once."""
        if value.constant:
            return self.constants[value.name].reshape(())
        if value not in known:
            op = self.links[value]
            known[value] = self.run(op, [self._compute(x, known) for x in op.tensors()])
        return known[value]
