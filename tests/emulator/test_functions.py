"""The function tables and softmax: published errors and values, and what every table must be."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from anew.device.emulator.lookup import TABLES, function_table, look_up
from anew.device.emulator.softmax import softmax
from anew.mil import OPS
from evidence.function_figures import Figure, composed_figures, parameters, row_figures, sweep_figures

#: Relative deviation from a published error that a calibrated operation may have, and one composed of several.
TABLE, COMPOSED = 0.07, 0.16
INF = math.inf


def values(kind, *points):
    return look_up(torch.tensor(points), function_table(kind, **parameters(kind))).tolist()


def everything():
    """Every fp16 number but NaN, in ascending order, as float32."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    return x[~x.isnan()].sort().values


@pytest.mark.parametrize("figure", list(sweep_figures()), ids=lambda f: f.name)
def test_the_error_of_a_table_is_the_published_one(figure: Figure):
    assert figure.compute() == pytest.approx(figure.published, rel=TABLE)


@pytest.mark.parametrize("figure", list(row_figures((64, 256))), ids=lambda f: f"{f.name} {f.chips}")
def test_the_error_of_rows_is_near_the_published_one(figure: Figure):
    assert figure.compute() == pytest.approx(figure.published, rel=COMPOSED + 0.01)


@pytest.mark.parametrize(
    "figure", [f for f in composed_figures() if "512" not in f.name], ids=lambda f: f"{f.name} {f.chips}"
)
def test_norms_and_attention_are_near_the_published_errors(figure: Figure):
    assert figure.compute() == pytest.approx(figure.published, rel=COMPOSED)


@pytest.mark.parametrize(
    ("kind", "point", "value"),
    [
        ("gelu", 0.0, -0.000754),
        ("silu", 0.0, -0.001259),
        ("log", 0.0, -45440.0),
        ("log", INF, 0.0),
        ("log", -1.0, 0.0),
        ("sqrt", -1.0, 0.0),
        ("sqrt", -0.0, 0.0),
        ("rsqrt", -1.0, 0.0),
        ("rsqrt", -0.0, INF),
        ("inverse", -0.0, INF),
        ("sigmoid", INF, 1.0),
        ("tanh", INF, 1.0),
        ("erf", INF, 1.0),
        ("exp", INF, INF),
        ("exp", -INF, 0.0),
        ("exp", 11.08, pytest.approx(64860, rel=0.02)),
        ("exp", 11.1, INF),
        ("softplus", 11.1, 0.0),
        ("softplus", 11.0, 11.0),
        ("softplus", INF, 0.0),
        ("softsign", INF, 0.0),
    ],
)
def test_published_values(kind, point, value):
    (found,) = values(kind, point)
    assert found == (pytest.approx(value, rel=6e-4) if isinstance(value, float) and 0 < abs(value) < INF else value)


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_maps_fp16_to_fp16_without_nan(kind):
    y = look_up(everything(), function_table(kind, **parameters(kind)))
    assert torch.equal(y.half().float(), y)
    assert not y.isnan().any()


@pytest.mark.parametrize("kind", ["exp", "exp2", "erf", "tanh", "sigmoid", "sqrt", "rsqrt", "inverse", "log"])
def test_a_monotonic_function_stays_so(kind):
    x = everything()
    x = x[(x > 0) & (x < INF)] if kind in ("sqrt", "rsqrt", "inverse", "log") else x
    steps = look_up(x, function_table(kind, **parameters(kind))).diff()
    steps = steps[~steps.isnan()]  # between infinities
    assert (steps <= 0).all() if kind in ("rsqrt", "inverse") else (steps >= 0).all()


@pytest.mark.parametrize("kind", ["tanh", "erf", "inverse"])
def test_an_odd_function_stays_so(kind):
    x = everything()
    x = x[(x > 0) & (x < INF)]
    table = function_table(kind, **parameters(kind))
    torch.testing.assert_close(look_up(x, table), -look_up(-x, table), rtol=0, atol=2.0**-24)


@pytest.mark.parametrize("kind", TABLES)
def test_every_function_is_right_to_a_percent_of_its_range(kind):
    x = everything()
    x = x[(x > 0.01) & (x < 10)] if kind in ("sqrt", "rsqrt", "inverse", "log") else x[x.abs() < 6]
    exact = OPS[kind].meaning(x.double(), **parameters(kind))
    found = look_up(x, function_table(kind, **parameters(kind)))
    assert (found - exact).abs().max() < 0.01 * exact.abs().max()


def test_a_table_is_made_once_and_the_same_every_time():
    first = function_table("tanh")
    assert function_table("tanh") is first
    function_table.cache_clear()
    assert np.array_equal(function_table("tanh"), first)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (1500, 7)])
def test_any_shape_and_strides(shape):
    x = torch.randn(shape).half().float()
    x = x.mT if x.dim() == 2 else x
    table = function_table("tanh")
    assert torch.equal(look_up(x, table), torch.stack([look_up(v, table) for v in x.flatten()]).view(x.shape))


def test_epsilon_is_added_in_fp16_without_subnormals():
    x = torch.tensor([0.0, 1.0, 0.25])
    assert torch.equal(look_up(x, function_table("rsqrt", epsilon=1e-5)), look_up(x, function_table("rsqrt")))
    assert look_up(x, function_table("rsqrt", epsilon=0.0625)).tolist() == pytest.approx([4.0, 0.970, 1.789], rel=2e-3)


def test_softmax_never_overflows_and_an_infinite_element_takes_all():
    x = torch.tensor([[1000.0, 1, 2, 3], [1, 1, 1, 1], [1, INF, 2, 3], [-60000, -60000, -60000, 60000]])
    assert softmax(x, 1).tolist() == [[1, 0, 0, 0], [0.25] * 4, [0, 1, 0, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_softmax_along_any_axis(axis):
    x = torch.randn(5, 33, 7).half().float()
    found = softmax(x, axis)
    torch.testing.assert_close(found, F.softmax(x, axis), rtol=5e-3, atol=1e-6)
    assert torch.equal(found, softmax(x.transpose(0, 2).contiguous().transpose(0, 2), axis))


def test_softmax_of_nothing_is_nothing():
    assert softmax(torch.empty(2, 0, 3), 1).shape == (2, 0, 3)
    assert softmax(torch.empty(0, 4), 1).shape == (0, 4)
