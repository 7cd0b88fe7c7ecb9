"""The gradient bar: `exact`, chip m4, a 4-layer Llama of dim 288, sequence 256, every parameter against fp64."""

import pytest

from evidence.gradients import CASES, measure

#: Left to `python -m evidence gradients`: "jump8" has the weights of the first, "grouped" those of the second.
EVIDENCE = {"random", "trained", "trained_lean", "rms100_lean"}


@pytest.mark.parametrize("case", [case for case in CASES if case not in EVIDENCE])
def test_every_gradient_is_within_two_percent(case: str) -> None:
    found = CASES[case]()
    assert found.worst_cosine >= 0.9995, found
    assert found.worst_error <= 0.02, found


def test_fast_is_within_the_same_bar() -> None:
    found = measure(numerics="fast")
    assert found.worst_cosine >= 0.9995
    assert found.worst_error <= 0.02


def test_without_scales_gradients_are_noise() -> None:
    """What the emulated arithmetic is worth: the test above fails when operands are not scaled."""
    from evidence.arithmetic import SETTINGS
    from evidence.arithmetic import measure as measure_setting
    from evidence.gradients import unchanged

    assert measure_setting(unchanged, *SETTINGS["none_1"]).worst_error > 0.5
