"""Operand scales of one region instance and direction: the exponents in use and how the next ones are chosen.

The engine's array rounds every product to 2^-16 and overflows at 32752, so each matmul operand is multiplied by a
power of two that brings its largest magnitude near ``OPERAND_TARGET`` while the largest sum stays near
``PRODUCT_TARGET``. The exponents come from the maxima of earlier runs; a run whose maxima leave the head room is
repeated with fresh ones.

Many products need no scales: their operands are neither so large nor so small. Runs that measure find out which, and
those between them do without, and without maxima.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from anew.device.base import INFINITE_PRODUCT
from anew.plan import Product, ScalePlan

#: Exponent of the magnitude that the largest cotangent is brought to, unless values then leave fp16.
COTANGENT = 6
#: Largest magnitude wanted of a scaled operand.
OPERAND_TARGET = 64.0
#: Largest magnitude wanted of one that meets only values of at most 1 or so, which have no factor.
LONELY_TARGET = 4096.0
#: Largest magnitude wanted of a weight, scaled on upload: lower, as weights spread less and the product must fit too.
WEIGHT_TARGET = 16.0
#: A weight whose largest magnitude is between these is uploaded as it is.
WEIGHT_FITS = 2.0**-5, 16.0
#: Largest magnitude wanted of a product: an eighth of where the array overflows.
PRODUCT_TARGET = 4096.0
#: The array overflows here (facts: bit-exact multiply-accumulate rule, 32752 is the largest finite result).
PRODUCT_LIMIT = 32752.0
#: fp16's largest finite magnitude.
FP16_MAX = 65504.0
#: A factor must be a normal fp16 number.
SMALLEST, LARGEST = -14, 15
#: Once every value is below this part of fp16's range, a lowered cotangent rises again, by a factor of two a run.
RECOVERY = 2.0**-6
#: The calls of an instance that measure: its first, and then one in so many.
FIRST, INTERVAL = 3, 16
#: What the largest magnitudes of two operands without scales multiply to, at least: typical numbers are a sixth or less
#: of them, so that a product is two hundred times the grid of 2^-16 and more.
PLAIN_FLOOR = 0.25
#: How many times the magnitude that it was measured with a result may have before the call is repeated and measured.
GROWTH = 4.0
#: The same of the cotangents that a program is given.
SHARE_GROWTH = 2.0
#: A scaled operand whose maximum is below this lost precision for want of a larger factor.
OPERAND_FLOOR = 0.25


def exponent_for(target: float, maximum: float) -> int:
    """The exponent of the largest power of two that brings ``maximum`` to at most ``target``; 0 for a maximum of 0."""
    if maximum == 0.0:
        return 0
    return math.floor(math.log2(target / maximum))


def weight_exponent(maximum: float) -> int:
    """The exponent a weight is scaled by on upload."""
    if WEIGHT_FITS[0] <= maximum <= WEIGHT_FITS[1]:
        return 0
    return int(np.clip(exponent_for(WEIGHT_TARGET, maximum), SMALLEST, LARGEST))


@dataclass
class ScaleState:
    """Exponents of one region instance in one direction.

    Attributes:
        plan: which rows mean what.
        exponents: one an operand; entries of weights and constants are overwritten before each run.
        cotangent: exponent of the magnitude that the largest cotangent is brought to.
        calibrated: False until a run has confirmed the exponents.
        calls: how many there were. plain: products that need no scales, as all runs that measured found; None before.
        reach: largest magnitudes of the results then, of the last run that measured. share: of its cotangents.
    """

    plan: ScalePlan
    exponents: list[int] = field(default_factory=list)
    cotangent: int = COTANGENT
    calibrated: bool = False
    calls: int = 0
    plain: list[int] | None = None
    reach: list[float] = field(default_factory=list)
    share: float = 1.0

    def __post_init__(self) -> None:
        self.exponents = self.exponents or [0] * len(self.plan.operands)

    def state_dict(self) -> dict[str, Any]:
        """All but the plan, as JSON values; ``ScaleState(plan, **state_dict)`` is this state again."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "plan"}
        return {k: list(v) if isinstance(v, list) else v for k, v in found.items()}

    @property
    def due(self) -> bool:
        """Whether the next call is to measure."""
        return self.plain is None or self.calls < FIRST or self.calls % INTERVAL == 0

    def settle(self, values: np.ndarray, weights: Mapping[int, float], reach: Sequence[float], share: float) -> None:
        """Note what a good run measured.

        Args:
            values: as :meth:`values` gives them. weights: largest magnitudes of weights by operand.
            reach: those of results. share: that of cotangents.
        """
        plain = [i for i, product in enumerate(self.plan.products) if self._is_plain(product, values, weights)]
        self.plain = plain if self.plain is None else sorted(set(plain) & set(self.plain))
        self.reach, self.share = list(reach), share
        self.calls += 1

    def _is_plain(self, product: Product, values: np.ndarray, weights: Mapping[int, float]) -> bool:
        """Whether a product needs no scales: it stays where sums may, and its factors where the grid is fine enough."""
        operands = (product.left, product.right)
        if any(i in weights and self.exponents[i] != 0 for i in operands):
            return False
        left, right = (weights[i] if i in weights else self.plan.operands[i].bound.value(values) for i in operands)
        row = product.maximum_row
        top = product.bound.value(values) if row is None else float(values[row])
        return left * right >= PLAIN_FLOOR and max(left, right) <= FP16_MAX and top <= PRODUCT_TARGET

    def relaxed(self, plan: ScalePlan, weights: Mapping[int, int]) -> ScaleState | None:
        """The exponents for a lean plan of the same program; None if a weight has one now that the plan has not."""
        state = ScaleState(plan, [0 if o.same is None else self.exponents[o.same] for o in plan.operands])
        for operand, exponent in weights.items():
            state.exponents[operand] = exponent
        unscaled = [p for i, p in enumerate(plan.products) if i in plan.plain]
        if any(weights.get(i) for p in unscaled for i in (p.left, p.right)):
            return None
        state.fix(dict(weights))
        return state

    def holds_for(self, share: float) -> bool:
        """Whether what was measured holds for cotangents of that magnitude."""
        return share <= SHARE_GROWTH * self.share

    def within(self, reach: Sequence[float]) -> bool:
        """Whether results have about the magnitudes that they had when they were measured."""
        return all(now <= GROWTH * then for now, then in zip(reach, self.reach, strict=True))

    def in_range(self, maxima: np.ndarray) -> bool:
        """Whether no result of a run overflowed, of those whose maxima the host found."""
        tops = [float(maxima[p.maximum_row]) for p in self.plan.products if p.maximum_row is not None]
        return all(top < PRODUCT_LIMIT for top in tops) and all(m < -INFINITE_PRODUCT for m in maxima.tolist())

    def fix(self, weights: dict[int, int]) -> None:
        """Take the exponents that weights were uploaded with, and make room for them in the products."""
        for operand, exponent in weights.items():
            self.exponents[operand] = exponent
        self._fit(self.exponents, [2 * LARGEST] * len(self.plan.products))

    def factors(self) -> np.ndarray:
        """The rows of ``SCALES``, fp16 [rows, 1]: every operand's factor, every product's inverse."""
        rows = np.ones((max(self.plan.scale_rows, 1), 1), np.float16)
        for operand, exponent in zip(self.plan.operands, self.exponents, strict=True):
            if operand.row is not None:
                rows[operand.row] = 2.0**exponent * operand.number
        for product in self.plan.products:
            if product.inverse_row is not None:
                rows[product.inverse_row] = 2.0 ** -self.product_exponent(product) * product.number
        return rows

    def product_exponent(self, product: Product) -> int:
        """The exponent that a product carries."""
        return self.exponents[product.left] + self.exponents[product.right]

    def values(self, maxima: np.ndarray) -> np.ndarray:
        """The maxima of a run, those of products divided by the scales that they carry."""
        values = np.array(maxima, np.float64)
        for product in self.plan.products:
            if product.maximum_row is not None:
                values[product.maximum_row] *= 2.0 ** -self.product_exponent(product)
        return values

    def review(self, maxima: np.ndarray) -> str:
        """Judge a run by its maxima and choose the exponents of the next one.

        Returns ``good``, ``rescale`` (run again with the new exponents) or ``overflow`` (a value other than a product
        left fp16: the cotangents must be brought lower, or a forward pass cannot be held).
        """
        known = self.values(maxima)
        tops = [self._top(product, maxima, known) for product in self.plan.products]
        burst = [not top < PRODUCT_LIMIT for top in tops]
        seen = {i: o.bound.value(known) for i, o in enumerate(self.plan.operands) if o.row is not None}
        values = [*seen.values(), *(float(maxima[r]) for r in self.plan.result_rows), *self._inner_products(tops)]
        if not any(burst) and not all(m < -INFINITE_PRODUCT for m in values):  # of that magnitude it may be no value
            return "overflow"
        fresh = self._operand_exponents(seen)
        limits = [self._product_limit(*case) for case in zip(self.plan.products, tops, burst, strict=True)]
        self._fit(fresh, limits)
        lost = any(burst) or any(self._misfit(i, m, fresh[i]) for i, m in seen.items())
        self.exponents = fresh
        pairs = zip(self.plan.products, limits, burst, strict=True)
        if any(burst and self.product_exponent(product) > limit for product, limit, burst in pairs):
            return "overflow"
        if not lost and self.cotangent < COTANGENT and max(values, default=0.0) < FP16_MAX * RECOVERY:
            self.cotangent += 1
        return "rescale" if lost else "good"

    def _top(self, product: Product, maxima: np.ndarray, known: np.ndarray) -> float:
        """What the magnitude of a product as the array gave it was, or did not exceed."""
        if product.maximum_row is not None:
            return float(maxima[product.maximum_row])
        return float(product.bound.value(known)) * 2.0 ** self.product_exponent(product)

    def _inner_products(self, tops: list[float]) -> list[float]:
        """Largest magnitudes of the products that the program itself divides by their scales, after that."""
        pairs = zip(self.plan.products, tops, strict=True)
        return [top * 2.0 ** -self.product_exponent(p) for p, top in pairs if p.inverse_row is not None]

    def _misfit(self, operand: int, maximum: float, fresh: int) -> bool:
        """Whether an operand overflowed, or was so small that a larger factor would have kept more of it."""
        if not maximum * 2.0 ** self.exponents[operand] <= FP16_MAX:
            return True
        scaled = maximum * 2.0 ** self.exponents[operand]
        return 0 < scaled < OPERAND_FLOOR and fresh > self.exponents[operand]

    def _operand_exponents(self, seen: dict[int, float]) -> list[int]:
        fresh = list(self.exponents)
        for i, maximum in seen.items():
            if math.isfinite(maximum):
                target = LONELY_TARGET if self.plan.operands[i].lonely else OPERAND_TARGET
                fresh[i] = int(np.clip(exponent_for(target, maximum), SMALLEST, LARGEST))
        return fresh

    def _product_limit(self, product: Product, top: float, burst: bool) -> int:
        """The largest exponent that a product may carry, judged by the run's."""
        used = self.product_exponent(product)
        if burst:
            return used - 6
        return used + exponent_for(PRODUCT_TARGET, top) if top else 2 * LARGEST

    def _fit(self, exponents: list[int], limits: Sequence[int]) -> None:
        """Bring products to their limits, as far as every factor and every inverse stays a normal fp16 number."""
        floors = self._floors(exponents)
        for i, floor in floors.items():
            exponents[i] = max(exponents[i], floor)
        for product, limit in zip(self.plan.products, limits, strict=True):
            inner = math.floor(math.log2(product.number)) - SMALLEST
            self._lower(exponents, product, limit if product.inverse_row is None else min(limit, inner), floors)

    def _floors(self, exponents: list[int]) -> dict[int, int]:
        """The least exponent of each operand that may change, such that no inverse exceeds ``2**LARGEST``."""
        floors = {
            i: SMALLEST - math.floor(math.log2(operand.number))
            for i, operand in enumerate(self.plan.operands)
            if operand.row is not None
        }
        for product in self.plan.products:
            if product.inverse_row is None:
                continue
            for i, other in ((product.left, product.right), (product.right, product.left)):
                if i in floors:
                    floors[i] = max(floors[i], -(LARGEST // 2) if other in floors else -LARGEST - exponents[other])
        return floors

    def _lower(self, exponents: list[int], product: Product, limit: int, floors: dict[int, int]) -> None:
        """Bring a product's exponent to at most ``limit``: half by each operand, the rest by whichever can."""
        movable = [i for i in (product.left, product.right) if i in floors]
        for shares in (len(movable), 1):
            excess = exponents[product.left] + exponents[product.right] - limit
            if excess > 0:
                for i in dict.fromkeys(movable):
                    exponents[i] = max(exponents[i] - -(-excess // shares), floors[i])
