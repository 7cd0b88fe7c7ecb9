"""Additions, products and look-ups that follow each other, in one pass over memory.

A tree of such operations of one shape becomes a list of instructions. It is carried out block by block: what one
instruction gives the next stays in the cache, rounded as it would be alone, so that the bits are those of the separate
operations. The kernel interprets the instructions: compiling one for every tree would take seconds each.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, prange, types
from numba.extending import intrinsic
from torch import Tensor

from anew.device.emulator.fused import times
from anew.device.emulator.lookup import Table, gather
from anew.device.emulator.rounding import elementwise_rule
from anew.device.team import kernel
from anew.device.transfer import INF_BITS, magnitude_bits

if TYPE_CHECKING:
    from anew.device.emulator.fusion import Step

__all__ = ["Formula", "merge"]

BLOCK = 1024
"""Elements that go through all instructions before the next ones do."""
LONGEST = 12
"""Instructions of a chain: their results stay in the nearest caches."""
_TASKS = 64
"""Parts that threads share."""
_OPERATIONS = ("add", "sub", "mul", "table")

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Formula:
    """What an elementwise step computes.

    Attributes:
        kind: of `_OPERATIONS`.
        shape: of the result, to which the operands broadcast.
        table: for a look-up.
    """

    kind: str
    shape: Shape
    table: Table | None = None


def merge(steps: Sequence[Step], outputs: Iterable[str]) -> list[Step]:
    """Replace every tree of steps that have a formula by one step; steps come after those whose results they read.

    A step joins the one that alone reads its result, if both have the same shape. Results among ``outputs`` are kept.
    """
    kept = set(outputs)
    readers = Counter(name for step in steps for name in set(step.operands))
    known = {step.results[0]: step for step in steps if step.formula is not None}
    joined: set[str] = set()
    merged = []
    for step in reversed(steps):
        if step.results[0] in joined:
            continue
        tree = _tree(step, known, readers) if step.formula is not None else [step]
        joined.update(part.results[0] for part in tree)
        merged.append(_chain(tree, kept) if len(tree) > 1 else step)
    return merged[::-1]


def _tree(root: Step, known: dict[str, Step], readers: Counter[str]) -> list[Step]:
    """The steps that end in ``root``, in an order in which they can be carried out."""
    found = [root]
    for step in found:  # grows on the way
        for name in dict.fromkeys(step.operands):
            part = known.get(name)
            if part is not None and readers[name] == 1 and _shape(part) == _shape(root) and len(found) < LONGEST:
                found.append(part)
    return found[::-1]


def _shape(step: Step) -> Shape:
    assert step.formula is not None
    return step.formula.shape


def _chain(tree: list[Step], kept: set[str]) -> Step:
    """One step for a tree: its operands have the first places, then comes the result of each instruction."""
    inner = [part.results[0] for part in tree]
    operands = tuple(dict.fromkeys(name for part in tree for name in part.operands if name not in inner))
    results = tuple(name for name in inner if name in kept or name == inner[-1])
    place = {name: i for i, name in enumerate([*operands, *inner])}
    code: list[tuple[int, int, int]] = []
    tables: list[Table] = []
    for part in tree:
        assert part.formula is not None
        second = place[part.operands[-1]]
        if part.formula.table is not None:
            second = len(tables)
            tables.append(part.formula.table)
        code.append((_OPERATIONS.index(part.formula.kind), place[part.operands[0]], second))
    program = _Program(_shape(tree[-1]), code, tables, [place[name] for name in results])
    return replace(tree[-1], kernel=program, operands=operands, results=results, formula=None)


class _Program:
    """A chain as a function of its operands, float32 on the fp16 grid; it returns the results, contiguous."""

    def __init__(
        self, shape: Shape, code: Sequence[tuple[int, int, int]], tables: Sequence[Table], results: Sequence[int]
    ) -> None:
        self.shape = shape
        self.code = np.array(code, np.int64)
        self.tables = tables  # kept alive: the kernel sees their addresses
        self.table_places = np.array([table.ctypes.data for table in tables], np.int64)
        self.results = np.array(results, np.int64)

    def __call__(self, *operands: Tensor) -> tuple[Tensor, ...]:
        if any(x.dtype != torch.float32 for x in operands):
            raise ValueError(f"operands of a chain: expected float32, got {[x.dtype for x in operands]}")
        sources = [x.contiguous() for x in operands]
        outs = tuple(torch.empty(self.shape) for _ in self.results)
        if outs[0].numel() > 0:
            axes = _common_axes(self.shape, tuple(x.shape for x in sources))
            places = np.array([x.data_ptr() for x in (*sources, *outs)], np.int64)
            _run(outs[0].view(-1).numpy(), *axes, places, self.code, self.table_places, self.results)
        return outs


@functools.lru_cache(maxsize=4096)
def _common_axes(shape: Shape, operands: tuple[Shape, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Join neighbouring axes that each operand has both of or neither.

    Returns the extents, at least one, and for each operand the elements from one index of an axis to the next (0 where
    it is broadcast): int64 [operands, axes].
    """
    padded = [(1,) * (len(shape) - len(other)) + other for other in operands]
    axes: list[tuple[int, tuple[bool, ...]]] = [(1, (True,) * len(operands))]
    for d, extent in enumerate(shape):
        has = tuple(other[d] == extent for other in padded)
        if extent != 1 and axes[-1][0] == 1:
            axes[-1] = (extent, has)
        elif extent != 1 and axes[-1][1] == has:
            axes[-1] = (axes[-1][0] * extent, has)
        elif extent != 1:
            axes.append((extent, has))
    steps = np.zeros((len(operands), len(axes)), np.int64)
    for i in range(len(operands)):
        step = 1
        for d in reversed(range(len(axes))):
            if axes[d][1][i]:
                steps[i, d] = step
                step *= axes[d][0]
    return np.array([extent for extent, _ in axes], np.int64), steps


@intrinsic
def _floats_at(typing_context: Any, address: Any) -> Any:
    """A pointer to float32 numbers, from its address (inside numba kernels only)."""
    return types.CPointer(types.float32)(types.int64), lambda context, builder, signature, args: builder.inttoptr(
        args[0], ir.FloatType().as_pointer()
    )


@kernel
def _run(
    root: np.ndarray,
    extents: np.ndarray,
    steps: np.ndarray,
    places: np.ndarray,
    code: np.ndarray,
    tables: np.ndarray,
    results: np.ndarray,
) -> None:
    """Carry out instructions on blocks along the last axis; `places` are addresses of operands, then of results."""
    operands, width = len(steps), extents[-1]
    pieces = (width + BLOCK - 1) // BLOCK
    blocks = root.size // width * pieces
    for task in prange(_TASKS):
        room = np.empty((operands + len(code)) * BLOCK, np.float32)
        lookups = np.empty(BLOCK, np.int32)
        at = np.empty(operands + len(code), np.int64)
        for block in range(blocks * np.int64(task) // _TASKS, blocks * (np.int64(task) + 1) // _TASKS):
            row, start = block // pieces, block % pieces * BLOCK
            size = min(BLOCK, width - start)
            for i in range(len(at)):
                at[i] = room.ctypes.data + 4 * i * BLOCK
            for i in range(len(results)):
                at[results[i]] = places[operands + i] + 4 * (row * width + start)
            for i in range(operands):
                offset, rest = start * steps[i, -1], row
                for d in range(len(extents) - 2, -1, -1):
                    offset += rest % extents[d] * steps[i, d]
                    rest //= extents[d]
                if steps[i, -1] == 1:
                    at[i] = places[i] + 4 * offset
                else:
                    room[i * BLOCK : i * BLOCK + size] = carray(_floats_at(places[i] + 4 * offset), 1)[0]
            for k in range(len(code)):
                x = carray(_floats_at(at[code[k, 1]]), size)
                out = carray(_floats_at(at[operands + k]), size)
                if code[k, 0] == 3:
                    gather(x, np.float32(0.0), carray(_floats_at(tables[code[k, 2]]), 1 << 17), lookups[:size], out)
                    continue
                y = carray(_floats_at(at[code[k, 2]]), size)
                if code[k, 0] == 2:
                    largest = np.int32(0)
                    for j in range(size):
                        out[j] = elementwise_rule(x[j] * y[j])
                        largest = max(largest, magnitude_bits(out[j]))
                    if largest >= INF_BITS:  # only where a product is infinite can an operand be
                        for j in range(size):
                            out[j] = times(x[j], y[j])
                elif code[k, 0] == 1:
                    for j in range(size):
                        out[j] = elementwise_rule(x[j] - y[j])
                else:
                    for j in range(size):
                        out[j] = elementwise_rule(x[j] + y[j])
