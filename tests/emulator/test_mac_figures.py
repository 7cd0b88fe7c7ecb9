"""Figures measured on silicon, reproduced to the last digits of a float64."""

import pytest

from evidence import silicon_figures

FIGURES = [*silicon_figures.mac_figures(), *silicon_figures.elementwise_figures()]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_published_figure(figure):
    assert figure.compute() == pytest.approx(figure.published, rel=figure.tolerance, abs=0)


def test_number_of_figures():
    assert len(FIGURES) == 25
    assert len(list(silicon_figures.large_gemm_figures())) == 3
