"""Bounds of magnitudes: what they allow, what they do not claim, and that no value exceeds them."""

import numpy as np
import pytest
import torch

from anew.compiler.passes.magnitudes import LOOSEST, Magnitudes
from anew.mil import Builder
from anew.plan import Bound

MATMUL = {"transpose_x": False, "transpose_y": False}


def known(make, *shapes):
    b = Builder()
    ports = [b.input(f"p{i}", shape) for i, shape in enumerate(shapes)]
    value = make(b, *ports)
    return Magnitudes(b.function([value]), ("matmul", "conv")).of(value)


def test_sums_and_products_of_bounds():
    p, q = Bound.of(0), Bound.of(1)
    bound = p.times(q).plus(Bound.number(3.0)).plus(p).plus(p)
    assert bound.value([2.0, 5.0]) == 2 * 5 + 3 + 2 * 2
    assert bound.factors() == {0, 1}
    assert bound.renamed({0: 1, 1: 0}.get).value([5.0, 2.0]) == 17.0


def test_moved_data_have_the_magnitude_of_what_was_moved():
    found = known(lambda b, x: b.op("reshape", x=b.op("transpose", x=x, perm=[1, 0]), shape=[2, 6]), (3, 4))
    assert found.bound == Bound.of("p0")
    assert found.loose == 1.0


def test_a_rotary_embedding_is_at_most_twice_as_large():
    """Halves of x, one of them negated, times sines, plus x times cosines."""

    def rotate(b, x, cos, sin):
        halves = [b.op("slice_by_size", x=x, begin=[0, i], size=[64, 4]) for i in (4, 0)]
        turned = b.op("concat", values=(b.op("mul", x=halves[0], y=-1.0), halves[1]), axis=1, interleave=False)
        return b.op("add", x=b.op("mul", x=x, y=cos), y=b.op("mul", x=turned, y=sin))

    found = known(rotate, (64, 8), (1, 8), (1, 8))
    rows = {"p0": 3.0, "p1": 1.0, "p2": 0.5}
    assert found.bound.renamed(list(rows).index).value(list(rows.values())) == 3.0 + 1.5
    assert found.loose == 2.0


@pytest.mark.parametrize(
    "make",
    [
        lambda b, x, y: b.op("mul", x=x, y=y),  # their peaks need not meet
        lambda b, x, y: b.op("exp", x=x),
        lambda b, x, y: b.op("real_div", x=x, y=y),
        lambda b, x, y: b.op("concat", values=(x, b.op("exp", x=y)), axis=0, interleave=False),
    ],
)
def test_nothing_is_known_of_what_maxima_do_not_tell(make):
    assert known(make, (8, 8), (8, 8)) is None


def test_a_bound_far_above_the_magnitude_is_none():
    def sums(b, x, steps):
        for _ in range(steps):
            x = b.op("add", x=x, y=x)
        return x

    assert known(lambda b, x: sums(b, x, 4), (4, 4)).loose == LOOSEST
    assert known(lambda b, x: sums(b, x, 5), (4, 4)) is None


def test_a_mean_weighted_by_softmax_does_not_exceed_what_it_is_of():
    def attend(b, scores, values):
        weights = b.op("softmax", x=scores, axis=-1)
        weights.softmax = True
        weights = b.op("reshape", x=weights, shape=[16, 8])
        return b.op("matmul", x=weights, y=values, **MATMUL)

    found = known(attend, (2, 8, 8), (8, 4))
    assert found.bound.factors() == {"p1"}
    generator = torch.Generator().manual_seed(0)
    weights, values = torch.randn(16, 8, generator=generator).softmax(-1), torch.randn(8, 4, generator=generator)
    assert (weights @ values).abs().max() <= found.bound.renamed(lambda _: 0).value([values.abs().max()])


@pytest.mark.parametrize(
    "make",
    [
        lambda b, s, v: b.op("matmul", x=b.op("softmax", x=s, axis=0), y=v, **MATMUL),  # columns add up to 1, not rows
        lambda b, s, v: b.op("matmul", x=b.op("softmax", x=s, axis=-1), y=v, transpose_x=True, transpose_y=False),
        lambda b, s, v: b.op("matmul", x=v, y=b.op("softmax", x=s, axis=-1), **MATMUL),
    ],
)
def test_other_products_of_softmax_are_measured(make):
    found = known(make, (8, 8), (8, 8))
    assert len(found.bound.factors()) == 1
    assert "p1" not in found.bound.factors()


def test_constants_have_their_largest_magnitude():
    found = known(lambda b, x: b.op("mul", x=x, y=b.array(np.array([-3.0, 2.0]), "c")), (64, 2))
    assert found.bound.renamed(lambda _: 0).value([2.0]) == 6.0


def test_the_gradient_of_softmax_is_bounded_by_what_comes_in():
    def slope(b, x, grad):
        y = b.op("softmax", x=x, axis=-1)
        y.softmax = True
        total = b.op("reduce_sum", x=b.op("mul", x=grad, y=y), axes=[-1], keep_dims=True)
        return b.op("mul", x=y, y=b.op("sub", x=grad, y=total))

    def slope_by_total(b, x, grad, total):
        y = b.op("softmax", x=x, axis=-1)
        y.softmax = True
        rest = b.op("sub", x=grad, y=total)
        rest.around_mean = grad
        return b.op("mul", x=y, y=rest)

    found = known(slope, (8, 8), (8, 8))
    assert found.loose == LOOSEST
    assert known(slope_by_total, (8, 8), (8, 8), (8, 1)) == found
    generator = torch.Generator().manual_seed(0)
    grad, y = torch.randn(8, 8, generator=generator), (9 * torch.randn(8, 8, generator=generator)).softmax(-1)
    largest = (y * (grad - (grad * y).sum(-1, keepdim=True))).abs().max()
    assert largest <= found.bound.renamed(lambda _: 0).value([grad.abs().max()])
