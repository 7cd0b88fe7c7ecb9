"""Operand scales of one region instance and direction: the exponents in use and how the next ones are chosen.

The engine's array rounds every product to 2^-16 and overflows at 32752, so each matmul operand is multiplied by a
power of two that brings its largest magnitude near ``OPERAND_TARGET`` while the largest sum stays near
``PRODUCT_TARGET``. The exponents come from the maxima of earlier runs; a run whose maxima leave the head room is
repeated with fresh ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from anew.plan import Product, ScalePlan

#: Largest magnitude wanted of a scaled operand.
OPERAND_TARGET = 64.0
#: Largest magnitude wanted of a weight, scaled on upload: lower, as weights spread less and the product must fit too.
WEIGHT_TARGET = 16.0
#: Largest magnitude wanted of a product: an eighth of where the array overflows.
PRODUCT_TARGET = 4096.0
#: The array overflows here (facts: bit-exact multiply-accumulate rule, 32752 is the largest finite result).
PRODUCT_LIMIT = 32752.0
#: fp16's largest finite magnitude.
FP16_MAX = 65504.0
#: A factor must be a normal fp16 number.
SMALLEST, LARGEST = -14, 15
#: A scaled operand whose maximum is below this lost precision for want of a larger factor.
OPERAND_FLOOR = 0.25


def exponent_for(target: float, maximum: float) -> int:
    """The exponent of the largest power of two that brings ``maximum`` to at most ``target``; 0 for a maximum of 0."""
    if maximum == 0.0:
        return 0
    return math.floor(math.log2(target / maximum))


def weight_exponent(maximum: float) -> int:
    """The exponent a weight is scaled by on upload."""
    return int(np.clip(exponent_for(WEIGHT_TARGET, maximum), SMALLEST, LARGEST))


@dataclass
class ScaleState:
    """Exponents of one region instance in one direction.

    Attributes:
        plan: which rows mean what.
        exponents: one an operand; entries of weights and constants are overwritten before each run.
        cotangent: exponent of the magnitude that the largest cotangent is brought to.
        calibrated: False until a run has confirmed the exponents.
    """

    plan: ScalePlan
    exponents: list[int] = field(default_factory=list)
    cotangent: int = 6
    calibrated: bool = False

    def __post_init__(self) -> None:
        self.exponents = self.exponents or [0] * len(self.plan.operands)

    def fix(self, weights: dict[int, int]) -> None:
        """Take the exponents that weights were uploaded with, and make room for them in the products."""
        for operand, exponent in weights.items():
            self.exponents[operand] = exponent
        self._fit_inverses(self.exponents)

    def factors(self) -> np.ndarray:
        """The rows of ``SCALES``, fp16 [rows, 1]: every operand's factor, every product's inverse."""
        rows = np.ones((max(self.plan.scale_rows, 1), 1), np.float16)
        for operand, exponent in zip(self.plan.operands, self.exponents, strict=True):
            if operand.row is not None:
                rows[operand.row] = 2.0**exponent
        for product in self.plan.products:
            if product.inverse_row is not None:
                rows[product.inverse_row] = 2.0 ** -self.product_exponent(product)
        return rows

    def product_exponent(self, product: Product) -> int:
        """The exponent that a product carries."""
        return self.exponents[product.left] + self.exponents[product.right]

    def review(self, maxima: np.ndarray) -> str:
        """Judge a run by its maxima and choose the exponents of the next one.

        Returns ``good``, ``rescale`` (run again with the new exponents) or ``overflow`` (a value other than a product
        left fp16: the cotangents must be brought lower, or a forward pass cannot be held).
        """
        burst = [not maxima[p.maximum_row] < PRODUCT_LIMIT for p in self.plan.products]
        seen = {i: float(maxima[o.maximum_row]) for i, o in enumerate(self.plan.operands) if o.maximum_row is not None}
        rows = [*seen.values(), *(float(maxima[r]) for r in self.plan.result_rows)]
        if not any(burst) and not all(m <= FP16_MAX for m in rows):
            return "overflow"
        fresh = self._choose(seen, maxima, burst)
        lost = any(burst) or any(self._misfit(i, m, fresh[i]) for i, m in seen.items())
        self.exponents = fresh
        return "rescale" if lost else "good"

    def _misfit(self, operand: int, maximum: float, fresh: int) -> bool:
        """Whether an operand overflowed, or was so small that a larger factor would have kept more of it."""
        if not maximum * 2.0 ** self.exponents[operand] <= FP16_MAX:
            return True
        scaled = maximum * 2.0 ** self.exponents[operand]
        return 0 < scaled < OPERAND_FLOOR and fresh > self.exponents[operand]

    def _choose(self, seen: dict[int, float], maxima: np.ndarray, burst: list[bool]) -> list[int]:
        fresh = list(self.exponents)
        for i, maximum in seen.items():
            if math.isfinite(maximum):
                fresh[i] = int(np.clip(exponent_for(OPERAND_TARGET, maximum), SMALLEST, LARGEST))
        for product, overflowed in zip(self.plan.products, burst, strict=True):
            used = self.product_exponent(product)
            if overflowed:
                limit = used - 6
            else:
                largest = float(maxima[product.maximum_row])
                limit = used + exponent_for(PRODUCT_TARGET, largest) if largest else 2 * LARGEST
            self._lower(fresh, product, limit)
        self._fit_inverses(fresh)
        return fresh

    def _fit_inverses(self, exponents: list[int]) -> None:
        """Inverse factors must be normal fp16 numbers too."""
        for product in self.plan.products:
            if product.inverse_row is not None:
                self._lower(exponents, product, -SMALLEST)

    def _lower(self, exponents: list[int], product: Product, limit: int) -> None:
        """Bring a product's exponent to at most ``limit`` by lowering those of its operands that may change."""
        excess = exponents[product.left] + exponents[product.right] - limit
        movable = [i for i in {product.left, product.right} if self.plan.operands[i].row is not None]
        if excess <= 0 or not movable:
            return
        share = -(-excess // len(movable))
        for i in movable:
            exponents[i] = max(exponents[i] - share, SMALLEST)
