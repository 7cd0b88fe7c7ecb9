"""From operations to kernel calls: operand scales and maxima ride along with the pass that computes their tensor.

A program scales each matmul operand, reports the maximum of every operand and product, and scales products back. On the
engine those are operations of a fused program; on the host each would be a pass over memory.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from anew.device.emulator.chains import Formula, merge
from anew.device.emulator.constants import is_pointwise, streamed_constants
from anew.device.emulator.fused import Deferred, defer_scale, scale
from anew.device.emulator.kernels import Arithmetic, Product
from anew.device.emulator.lookup import look_up
from anew.device.emulator.rounding import absmax
from anew.device.emulator.tabulate import Tabulation
from anew.mil import Function, Op, Value

Scaling = Callable[[Tensor, float], tuple[Tensor | Deferred, float]]


@dataclass
class Step:
    """One kernel call: the values it reads, those it defines, and those nobody reads after it.

    ``sink`` is an output that the kernel writes to its buffer, which it takes as ``into``, or None. ``formula`` is of
    elementwise steps that may become part of a chain.
    """

    kernel: Callable[..., tuple[Tensor | Deferred, ...]]
    operands: tuple[str, ...]
    results: tuple[str, ...]
    sink: str | None = None
    dead: tuple[str, ...] = ()
    formula: Formula | None = None


def make_steps(function: Function, constants: Mapping[str, Tensor], arithmetic: Arithmetic) -> list[Step]:
    """The steps that compute a function, in an order in which every operand is there."""
    fusion = _Fusion(function, constants, arithmetic)
    steps = _ordered(fusion.steps(), [v.name for v in function.inputs] + list(constants))
    return merge(steps, [v.name for v in function.outputs])


class _Fusion:
    def __init__(self, function: Function, constants: Mapping[str, Tensor], arithmetic: Arithmetic) -> None:
        self.ops = [op for op in function.ops if not op.constant]
        self.arithmetic = arithmetic
        self.outputs = set(function.outputs)
        self.uses: dict[Value, list[Op]] = defaultdict(list)
        for op in self.ops:
            for value in op.tensors():
                self.uses[value].append(op)
        self.producers = {v: op for op in self.ops for v in op.outputs}
        self.tabulation = Tabulation(self.ops, constants, self.outputs, lambda op, x: arithmetic.kernel(op)(*x))
        self.streamed = streamed_constants(function)
        self.done = set(self.tabulation.chained)

    def steps(self) -> list[Step]:
        """Products first, as they take the most with them; then in the order of the program again."""
        found = [(self.ops.index(self.producers[value]), self._lookup(value)) for value in self.tabulation.tables]
        found += [(self.ops.index(self.uses[v][0]), _streamed(v, make)) for v, make in self.streamed.items()]
        found += [(self.ops.index(rows[0]), self._rows(value, rows)) for value, rows in self._tables_of_numbers()]
        for wanted, make in (
            (is_product, self._product),
            (self._is_scale, self._operand),
            (lambda op: self._maximum_of(op) is not None, self._maximum),
            (lambda op: True, self._single),
        ):
            for position, op in enumerate(self.ops):
                if op not in self.done and wanted(op):
                    found.append((position, make(op)))
        return [step for _, step in sorted(found, key=lambda item: item[0])]

    def _lookup(self, value: Value) -> Step:
        """A chain of operations on one tensor."""
        argument, table = self.tabulation.tables[value]
        formula = Formula("table", value.shape, table)
        return Step(lambda x: (look_up(x, table),), (argument.name,), (value.name,), formula=formula)

    def _tables_of_numbers(self) -> list[tuple[Value, list[Op]]]:
        """The columns of numbers, such as scales, that are taken apart row by row, and what takes them apart."""
        found = []
        for value, uses in self.uses.items():
            rows = [op for op in uses if op.kind == "slice_by_size" and op.output.shape == (1, 1)]
            if len(rows) > 1 and value.shape[1:] == (1,):
                found.append((value, rows))
        return found

    def _rows(self, column: Value, rows: list[Op]) -> Step:
        """All rows at once: each by itself would cost as much as a small product."""
        self.done.update(rows)
        begins = [op.inputs["begin"] for op in rows]
        places = [begin.const[0] for begin in begins if isinstance(begin, Value)]
        names = tuple(op.output.name for op in rows)
        return Step(partial(_taken_apart, places), (column.name,), names)

    def _single(self, op: Op) -> Step:
        kernel = self.arithmetic.kernel(op)
        self.done.add(op)
        operands, results = tuple(v.name for v in op.tensors()), tuple(v.name for v in op.outputs)
        formula = Formula(op.kind, op.output.shape) if op.kind in ("add", "sub", "mul") else None
        return Step(lambda *x: _as_tuple(kernel(*x)), operands, results, formula=formula)

    def _product(self, op: Op) -> Step:
        """A product with the maximum of its result and, where nothing else reads the result, its inverse scale."""
        multiply = self.arithmetic.product(op)
        operands = [v.name for v in op.tensors()]
        self.done.add(op)
        report = self._report(op.output)
        others = [use for use in self.uses[op.output] if report is None or use is not report[0]]
        inverse = others[0] if len(others) == 1 and self._is_scale(others[0]) else None
        if op.output in self.outputs:
            inverse = None
        result = op.output
        if inverse is not None:
            self.done.add(inverse)
            operands.append(list(inverse.tensors())[1].name)
            result = inverse.output
        sink = result.name if result in self.outputs and not others else None
        if report is None:
            return Step(partial(_product, multiply, None), tuple(operands), (result.name,), sink)
        self.done.update(report)
        names = (result.name, report[1].output.name)
        return Step(partial(_product, multiply, report[1].output.shape), tuple(operands), names, sink)

    def _operand(self, op: Op) -> Step:
        """A scaled operand with its maximum."""
        x, factor = op.tensors()
        self.done.add(op)
        report = self._report(x)
        apply = defer_scale if self._defers(op) else scale
        if report is None or report[0] in self.done:
            return Step(lambda x, f: apply(x, f.item())[:1], (x.name, factor.name), (op.output.name,))
        self.done.update(report)
        shape = report[1].output.shape
        names = (op.output.name, report[1].output.name)
        return Step(lambda x, f: _scaled(apply, x, f, shape), (x.name, factor.name), names)

    def _defers(self, op: Op) -> bool:
        """Whether a scale can be left to the products, which alone read its result and take float32 sums."""
        readers = self.uses[op.output]
        only_products = op.output not in self.outputs and all(is_product(use) for use in readers)
        return not self.arithmetic.exact and only_products

    def _maximum(self, op: Op) -> Step:
        """``reduce_max(abs(x))`` of a value that is neither an operand nor a product."""
        magnitude = self._maximum_of(op)
        assert magnitude is not None
        self.done.update((op, magnitude))
        (x,) = magnitude.tensors()
        shape = op.output.shape
        return Step(lambda x: (torch.full(shape, absmax(x)),), (x.name,), (op.output.name,))

    def _is_scale(self, op: Op) -> bool:
        """Whether an operation multiplies by one number known only at run time."""
        if op.kind != "mul":
            return False
        x, factor = op.tensors()
        return not factor.constant and factor.shape == (1, 1) and x.type.rank >= 2 and x.shape == op.output.shape

    def _report(self, value: Value) -> tuple[Op, Op] | None:
        """The ``abs`` and ``reduce_max`` that report a value's maximum."""
        for use in self.uses[value]:
            if use.kind == "abs" and len(self.uses[use.output]) == 1:
                (reduction,) = self.uses[use.output]
                if self._maximum_of(reduction) is use:
                    return use, reduction
        return None

    def _maximum_of(self, op: Op) -> Op | None:
        """The ``abs`` that a ``reduce_max`` over all axes reads, if nothing else reads it."""
        if op.kind != "reduce_max" or op.output.type.numel != 1:
            return None
        (x,) = op.tensors()
        if x in self.outputs or len(self.uses[x]) != 1:
            return None
        before = self.producers.get(x)
        return before if before is not None and before.kind == "abs" else None


def is_product(op: Op) -> bool:
    """Whether an operation is a product of two matrices, or of several."""
    return op.kind == "matmul" or is_pointwise(op)


def _streamed(value: Value, make: Callable[[], Tensor]) -> Step:
    """A constant that is brought into the kernels' form when it is read, and dropped after."""
    return Step(lambda: (make(),), (), (value.name,))


def _taken_apart(places: list[int], column: Tensor) -> tuple[Tensor, ...]:
    rows = column.split(1)
    return tuple(rows[i] for i in places)


def _as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a kernel returns: several results only of operations such as ``split``."""
    return result if isinstance(result, tuple) else (result,)


def _product(
    multiply: Product, shape: tuple[int, ...] | None, *x: Tensor, into: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Sums, rounded and scaled back; with their maximum when ``shape`` says which it has."""
    (left, a), (right, b) = map(_operand_of, x[:2])
    product, largest = multiply(left, right, a * b, x[2].item() if len(x) > 2 else None, into)
    return (product,) if shape is None else (product, torch.full(shape, largest))


def _operand_of(x: Tensor | Deferred) -> tuple[Tensor, float]:
    return (x.x, x.factor) if isinstance(x, Deferred) else (x, 1.0)


def _scaled(apply: Scaling, x: Tensor, factor: Tensor, shape: tuple[int, ...]) -> tuple[Tensor | Deferred, Tensor]:
    out, largest = apply(x, factor.item())
    return out, torch.full(shape, largest)


def _ordered(steps: list[Step], known: list[str]) -> list[Step]:
    """Steps in an order in which operands come first, otherwise as they stand."""
    waiting: dict[str, list[int]] = defaultdict(list)
    missing = [0] * len(steps)
    present = set(known)
    for i, step in enumerate(steps):
        for name in set(step.operands) - present:
            waiting[name].append(i)
            missing[i] += 1
    ready = [i for i, n in enumerate(missing) if n == 0]
    ordered = []
    while ready:
        i = heapq.heappop(ready)
        ordered.append(steps[i])
        for name in steps[i].results:
            for j in waiting[name]:
                missing[j] -= 1
                if missing[j] == 0:
                    heapq.heappush(ready, j)
    return ordered
