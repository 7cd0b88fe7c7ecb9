"""Bounds of magnitudes as data: sums of products of maxima, which the host works out for each run."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np

A = TypeVar("A", bound=Hashable)
B = TypeVar("B", bound=Hashable)


class Bound(tuple[tuple[float, tuple[A, ...]], ...], Generic[A]):
    """Terms ``(coefficient, factors)``, all positive; a magnitude does not exceed the sum of their products.

    Factors are rows of the maxima of a run; while a program is compiled, what these rows will be of.
    """

    __slots__ = ()

    @classmethod
    def of(cls, factor: A) -> Bound[A]:
        """The bound that is one maximum."""
        return cls(((1.0, (factor,)),))

    @classmethod
    def number(cls, value: float) -> Bound[A]:
        """A bound that no run changes."""
        return cls(((float(value), ()),))

    def times(self, other: Bound[A]) -> Bound[A]:
        """The bound of a product."""
        return Bound((a * b, left + right) for a, left in self for b, right in other)

    def plus(self, other: Bound[A]) -> Bound[A]:
        """The bound of a sum; that of equal terms is one term."""
        terms: dict[tuple[A, ...], float] = {}
        for coefficient, factors in (*self, *other):
            terms[factors] = terms.get(factors, 0.0) + coefficient
        return Bound((coefficient, factors) for factors, coefficient in terms.items())

    def factors(self) -> set[A]:
        """Every maximum that it depends on."""
        return {factor for _, factors in self for factor in factors}

    def renamed(self, name: Callable[[A], B]) -> Bound[B]:
        """The bound with its factors named otherwise."""
        return Bound((coefficient, tuple(map(name, factors))) for coefficient, factors in self)

    def constant(self) -> float | None:
        """The bound's value where no run changes it, None elsewhere."""
        return None if self.factors() else sum(coefficient for coefficient, _ in self)

    def value(self: Bound[int], maxima: Sequence[float] | np.ndarray) -> float:
        """The bound in a run that had these maxima."""
        return sum(coefficient * math.prod(float(maxima[row]) for row in factors) for coefficient, factors in self)


#: The bound of what nothing is known of.
UNKNOWN: Bound[int] = Bound()
