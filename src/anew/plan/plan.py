"""A compiled plan as data: one program, how the host's tensors meet its ports, and its operand scales.

A program computes in fp16; the host's tensors are fp32. Every matmul operand is multiplied by a power of two before the
multiply-accumulate array and the product by the inverse after it. The exponents live outside the program, in its input
port ``SCALES``; the program returns the maxima that the next exponents are chosen from in its output port ``MAXIMA``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

from anew.plan.bounds import UNKNOWN, Bound

#: The input port with one power of two a row, and the output port with one maximum a row.
SCALES = "anew_scales"
MAXIMA = "anew_maxima"

#: Bits that frozen weights may have as constants of a program; 0: they are inputs like all others.
BASE_BITS = (0, 8, 16)


@dataclass(frozen=True)
class InputPort:
    """An input port and where its data come from.

    Attributes:
        name: the port's name.
        argument: position among the arguments of the graph.
        shape: the port's shape.
        kind: ``activation``; ``weight`` (a parameter: converted once a step); ``cotangent`` (multiplied by the power of
            two chosen from the maximum over all cotangents).
        operand: index of the matmul operand that a weight is, when it is nothing else; the host scales it on upload.
        maximum_row: row of its largest magnitude among the maxima, which the host finds while it writes it; None where
            no bound depends on it.
    """

    name: str
    argument: int
    shape: tuple[int, ...]
    kind: str
    operand: int | None = None
    maximum_row: int | None = None


@dataclass(frozen=True)
class OutputPort:
    """An output port and which results of the graph it gives.

    Attributes:
        name: the port's name.
        shape: its shape.
        results: positions among the graph's results.
        saved: True when only the backward graph reads it: it stays an fp16 buffer.
        linear: True when it is linear in the cotangents and must be divided by their scale.
        product: index of the product whose operand scales are still in it; the host divides them out.
        maximum_row: row of its largest magnitude among the maxima, which the host finds while it reads it; None where
            the program reports that, or nobody asks.
        bound: of the magnitudes of a saved value, which the backward program then need not find; empty if unknown.
    """

    name: str
    shape: tuple[int, ...]
    results: tuple[int, ...]
    saved: bool
    linear: bool
    product: int | None = None
    maximum_row: int | None = None
    bound: Bound[int] = UNKNOWN


@dataclass(frozen=True)
class Operand:
    """A matmul operand.

    Attributes:
        row: of its factor in ``SCALES``; None when its exponent is not chosen from maxima: a weight's is chosen on
            upload, that of a constant is 0, and so is that of a value whose bound says that it needs no factor.
        bound: of its magnitudes before the factor, over rows of the maxima; empty for weights and constants.
        lonely: whether the other operands that it meets have no factor, and are so small that it takes all of theirs.
        number: of the program's own, by which the row also multiplies.
        same: in a lean plan, the index that it has in the plan that measures; None where it has no scale.
    """

    row: int | None
    bound: Bound[int] = UNKNOWN
    lonely: bool = False
    number: float = 1.0
    same: int | None = None


@dataclass(frozen=True)
class Product:
    """A matmul.

    Attributes:
        left, right: its operands.
        inverse_row: of its inverse scale in ``SCALES``; None: left to the host.
        maximum_row: of its maximum; None where ``bound`` says what it cannot exceed.
        bound: of its magnitudes after the inverse scale.
        number: of the program's own, by which the inverse row also multiplies.
    """

    left: int
    right: int
    inverse_row: int | None
    maximum_row: int | None
    bound: Bound[int] = UNKNOWN
    number: float = 1.0


@dataclass(frozen=True)
class ScalePlan:
    """Which rows of ``SCALES`` and ``MAXIMA`` mean what.

    ``maxima_rows`` are those of the program's port. After them come ``found_rows`` that the host finds: of results
    while it reads them, of arguments while it writes them (``maximum_row`` of their ports).

    In a lean plan the products numbered in ``plain`` have no scales, and the program measures nothing.
    """

    operands: tuple[Operand, ...] = ()
    products: tuple[Product, ...] = ()
    result_rows: tuple[int, ...] = ()  # maxima of results that are neither products nor operands
    scale_rows: int = 0
    maxima_rows: int = 0
    found_rows: int = 0
    plain: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Plan:
    """One program with its bindings."""

    name: str
    text: str
    weights: bytes
    inputs: tuple[InputPort, ...]
    outputs: tuple[OutputPort, ...]
    passed: tuple[tuple[int, int], ...]  # results that are arguments unchanged: (result, argument)
    truths: tuple[int, ...]  # results that are bool tensors outside, and the numbers 1 and 0 in the program
    result_count: int
    scales: ScalePlan
    flops: int
    operations: dict[str, int] = field(default_factory=dict)  # count by MIL operation
    spared: dict[str, int] = field(default_factory=dict)  # passes over elements that it does without, by the reason

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that are the same for equal programs with equal bindings, whatever their names."""
        bindings = replace(self, name="", weights=b"", operations={}, spared={})
        return hashlib.sha256(repr(bindings).encode() + self.weights).hexdigest()[:16]
