"""Operand scales: how exponents follow the maxima of a run, and what they never do."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from anew.device.base import INFINITE_PRODUCT
from anew.frontend.scales import (
    COTANGENT,
    FP16_MAX,
    LONELY_TARGET,
    OPERAND_TARGET,
    PRODUCT_LIMIT,
    PRODUCT_TARGET,
    ScaleState,
    exponent_for,
    weight_exponent,
)
from anew.plan import Bound, Operand, Product, ScalePlan

#: One product of two activations, scales divided out in the program; maxima: left, right, product.
PAIR = ScalePlan((Operand(0, Bound.of(0)), Operand(1, Bound.of(1))), (Product(0, 1, 2, 2),), (), 3, 3)
#: An activation times a weight, the scales left to the host; maxima: activation, product, another result.
WEIGHTED = ScalePlan((Operand(0, Bound.of(0)), Operand(None)), (Product(0, 1, None, 1),), (2,), 1, 3)


def maxima(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize(("target", "maximum", "exponent"), [(64, 64, 0), (64, 65, -1), (64, 1, 6), (64, 0, 0)])
def test_exponent_for(target, maximum, exponent):
    assert exponent_for(target, maximum) == exponent


@pytest.mark.parametrize(("maximum", "exponent"), [(0.0, 0), (0.02, 9), (1e-12, 15), (300.0, -5), (1e30, -14)])
def test_weight_exponent_stays_a_normal_factor(maximum, exponent):
    assert weight_exponent(maximum) == exponent


def test_a_fitting_run_is_good_and_follows_the_maxima():
    state = ScaleState(PAIR)
    assert state.review(maxima(2.0, 32.0, 3.0)) == "good"
    assert state.exponents == [5, 1]
    assert state.factors().tolist() == [[32.0], [2.0], [1 / 64]]


def test_a_burst_product_is_run_again_with_smaller_operands():
    state = ScaleState(PAIR, [5, 5])
    assert state.review(maxima(2.0, 2.0, math.inf)) == "rescale"
    assert sum(state.exponents) <= 4


def test_a_large_product_lowers_its_operands():
    state = ScaleState(PAIR, [5, 5])
    assert state.review(maxima(2.0, 2.0, 20000.0)) == "good"
    assert 20000.0 * 2.0 ** (sum(state.exponents) - 10) <= PRODUCT_TARGET


def test_an_operand_too_small_for_its_factor_is_run_again():
    state = ScaleState(PAIR, [0, 0])
    assert state.review(maxima(0.001, 1.0, 0.001)) == "rescale"
    assert 0.001 * 2.0 ** state.exponents[0] >= 1
    assert state.review(maxima(0.001, 1.0, 0.001)) == "good"


def test_an_operand_that_overflows_its_factor_is_run_again():
    state = ScaleState(PAIR, [10, 0])
    assert state.review(maxima(100.0, 1.0, 5.0)) == "rescale"
    assert 100.0 * 2.0 ** state.exponents[0] <= OPERAND_TARGET


def test_zero_maxima_are_good_and_leave_factors_at_one():
    state = ScaleState(PAIR)
    assert state.review(maxima(0.0, 0.0, 0.0)) == "good"
    assert state.exponents == [0, 0]
    assert state.review(maxima(0.01, 0.0, 0.0)) == "rescale"  # LoRA's first step away from zero


@pytest.mark.parametrize("value", [math.inf, math.nan, 70000.0, -INFINITE_PRODUCT])
def test_a_result_beyond_fp16_is_an_overflow(value):
    assert ScaleState(WEIGHTED).review(maxima(1.0, 1.0, value)) == "overflow"


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_an_operand_beyond_fp16_is_an_overflow(value):
    state = ScaleState(PAIR, [3, 3])
    assert state.review(maxima(value, 1.0, 1.0)) == "overflow"
    assert state.exponents == [3, 3]


def test_a_product_that_leaves_fp16_once_its_scales_are_divided_out_is_an_overflow():
    state = ScaleState(PAIR, [-3, -3])
    assert state.review(maxima(400.0, 400.0, 2000.0)) == "overflow"  # 2000 * 2^6 = 128000


def test_a_product_that_bursts_at_the_least_scales_is_an_overflow():
    state = ScaleState(PAIR)
    verdicts = [state.review(maxima(FP16_MAX, FP16_MAX, math.inf)) for _ in range(8)]
    assert verdicts[0] == "rescale"
    assert verdicts[-1] == "overflow"


def test_the_weight_s_exponent_is_taken_as_it_is():
    state = ScaleState(WEIGHTED)
    state.fix({1: 7})
    assert state.review(maxima(1.0, 20000.0, 1.0)) == "good"
    assert state.exponents[1] == 7
    assert 20000.0 * 2.0 ** (sum(state.exponents) - 7) <= PRODUCT_TARGET


def test_an_operand_twice_in_a_product_is_lowered_by_half():
    square = ScalePlan((Operand(0, Bound.of(0)),), (Product(0, 0, 1, 1),), (), 2, 2)
    state = ScaleState(square, [4])
    assert state.review(maxima(4.0, 16384.0)) == "good"
    assert state.exponents == [3]


def test_a_shared_operand_suits_all_its_products():
    shared = ScalePlan(
        tuple(Operand(i, Bound.of(i)) for i in range(3)), (Product(0, 1, 3, 3), Product(0, 2, 4, 4)), (), 5, 5
    )
    state = ScaleState(shared, [5, 5, 5])
    assert state.review(maxima(2.0, 2.0, 2.0, 30000.0, 3.0)) == "good"
    assert 30000.0 * 2.0 ** (state.exponents[0] + state.exponents[1] - 10) <= PRODUCT_TARGET
    assert 3.0 * 2.0 ** (state.exponents[0] + state.exponents[2] - 10) <= PRODUCT_TARGET


def test_inverse_factors_are_normal_at_both_ends():
    state = ScaleState(PAIR)
    state.review(maxima(2e-6, 2e-6, 0.0))
    assert state.factors()[2] >= 2.0**-14
    state = ScaleState(PAIR)
    assert state.review(maxima(50000.0, 50000.0, 100.0)) == "good"  # large entries that never meet
    assert np.isfinite(state.factors()).all()


def test_a_lowered_cotangent_recovers():
    state = ScaleState(WEIGHTED, cotangent=COTANGENT - 3)
    for expected in (COTANGENT - 2, COTANGENT - 1, COTANGENT, COTANGENT):
        assert state.review(maxima(1.0, 1.0, 1.0)) == "good"
        assert state.cotangent == expected
    state.cotangent = 0
    state.review(maxima(1.0, 1.0, 10000.0))
    assert state.cotangent == 0


@st.composite
def plans(draw):
    """Operands, some fixed, products over them, each inner or outer, rows as the compiler lays them out."""
    movable = draw(st.lists(st.booleans(), min_size=1, max_size=5))
    pairs = st.tuples(*[st.integers(0, len(movable) - 1)] * 2)
    chosen = draw(st.lists(pairs.filter(lambda p: movable[p[0]] or movable[p[1]]), min_size=1, max_size=5))
    rows = iter(range(100))
    maxima_rows = iter(range(100))
    operands = tuple(Operand(next(rows), Bound.of(next(maxima_rows))) if m else Operand(None) for m in movable)
    products = tuple(Product(a, b, draw(st.none() | st.just(next(rows))), next(maxima_rows)) for a, b in chosen)
    return ScalePlan(operands, products, (), next(rows), next(maxima_rows))


EXPONENTS = st.integers(-14, 15)
MAGNITUDES = st.just(0.0) | st.floats(2.0**-24, FP16_MAX) | st.floats(2.0**-24, 1.0)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_after_a_good_run_every_factor_is_normal_and_no_product_bursts(data):
    plan = data.draw(plans().filter(lambda p: any(o.row is not None for o in p.operands)))
    state = ScaleState(plan)
    fixed = {i: data.draw(EXPONENTS) for i, o in enumerate(plan.operands) if o.row is None}
    state.fix(fixed)
    values = np.zeros(plan.maxima_rows, np.float32)
    peaks = [data.draw(MAGNITUDES) for _ in plan.operands]
    sums = [data.draw(MAGNITUDES) for _ in plan.products]  # unscaled
    for i, operand in enumerate(plan.operands):
        for row in operand.bound.factors():
            values[row] = peaks[i]
    verdict = "rescale"
    for _ in range(16):
        used = [state.product_exponent(p) for p in plan.products]
        for product, total, exponent in zip(plan.products, sums, used, strict=True):
            scaled = total * 2.0**exponent
            values[product.maximum_row] = scaled if scaled < PRODUCT_LIMIT else np.inf
        verdict = state.review(values)
        if verdict != "rescale":
            break
    assume(verdict == "good")
    factors = state.factors().astype(np.float64)
    assert (factors >= 2.0**-14).all()
    assert (factors <= 2.0**15).all()
    for i, operand in enumerate(plan.operands):
        if operand.row is None:
            assert state.exponents[i] == fixed[i]
        else:
            assert factors[operand.row] == 2.0 ** state.exponents[i]
            assert peaks[i] * factors[operand.row] <= FP16_MAX
    for product, total in zip(plan.products, sums, strict=True):
        exponent = state.product_exponent(product)
        assert total * 2.0**exponent < PRODUCT_LIMIT
        if product.inverse_row is not None:
            assert factors[product.inverse_row] == 2.0**-exponent


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_values_that_fp16_holds_settle_within_a_few_runs(data):
    plan = data.draw(plans())
    state = ScaleState(plan)
    state.fix({i: data.draw(st.integers(-4, 8)) for i, o in enumerate(plan.operands) if o.row is None})
    values = np.zeros(plan.maxima_rows, np.float32)
    for operand in plan.operands:
        for row in operand.bound.factors():
            values[row] = data.draw(st.floats(1e-3, 1e3))
    sums = [data.draw(st.floats(1e-3, 1e4)) for _ in plan.products]
    for _run in range(6):
        for product, total in zip(plan.products, sums, strict=True):
            scaled = total * 2.0 ** state.product_exponent(product)
            values[product.maximum_row] = scaled if scaled < PRODUCT_LIMIT else np.inf
        if state.review(values) == "good":
            break
    else:
        pytest.fail("no good run")


def test_an_operand_follows_a_bound_by_the_maxima_of_ports_and_products():
    """The right operand is at most 3 times the first product, divided by its scales, times a port's largest number."""
    bound = Bound.of(2).times(Bound.of(1)).times(Bound.number(3.0))
    plan = ScalePlan(
        (Operand(0, Bound.of(0)), Operand(None), Operand(1, bound)),
        (Product(0, 1, 2, 2), Product(0, 2, None, 3)),
        (),
        3,
        4,
    )
    state = ScaleState(plan)
    state.fix({1: 4})
    assert state.review(maxima(8.0, 0.5, 2.0**4, 1.0)) == "good"  # 2^4 times the scale of the weight: the value is 1
    assert state.exponents == [3, 4, exponent_for(OPERAND_TARGET, 3.0 * 0.5 * 1.0)]


def test_a_product_with_a_bound_is_guarded_by_it():
    """An operand that meets softmax takes a larger factor; the product cannot exceed it, and is not measured."""
    plan = ScalePlan(
        (Operand(None, Bound.number(1.0)), Operand(0, Bound.of(0), lonely=True)),
        (Product(0, 1, 1, None, Bound.of(0)),),
        (),
        2,
        1,
    )
    state = ScaleState(plan)
    assert state.review(maxima(8.0)) == "good"
    assert state.exponents == [0, exponent_for(LONELY_TARGET, 8.0)]
    assert state.review(maxima(8.0 * PRODUCT_LIMIT / LONELY_TARGET)) == "rescale"  # it may have burst
    assert state.review(maxima(8.0 * PRODUCT_LIMIT / LONELY_TARGET)) == "good"
