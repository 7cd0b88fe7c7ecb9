"""Two chains of work beside each other: never more than one after the other, never less than the memory allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anew.estimate.overlap import Beside, Stage

SECONDS = st.floats(0, 10)
STAGES = st.lists(st.builds(Stage, st.integers(1, 40), SECONDS, SECONDS), min_size=1, max_size=3).map(tuple)


def pipeline(stages: tuple[Stage, ...]) -> float:
    """The end of the last link, each of the second chain waiting for that of the first and for the one before it."""
    ready, end = 0.0, 0.0
    for stage in stages:
        for _ in range(stage.links):
            ready += stage.first / stage.links
            end = max(end, ready) + stage.then / stage.links
    return end


@given(STAGES)
def test_the_pipeline_is_what_following_it_link_by_link_gives(stages: tuple[Stage, ...]) -> None:
    assert Beside(stages, 0.0, 1.0).seconds == pytest.approx(pipeline(stages))


@given(STAGES, st.floats(0, 100))
def test_the_memory_holds_both_back_but_never_beyond_one_after_the_other(
    stages: tuple[Stage, ...], size: float
) -> None:
    found = Beside(stages, size, 7.0)
    apart = sum(stage.first + stage.then for stage in stages)
    assert min(apart, size / 7.0) <= found.seconds <= apart
    assert found.saved == pytest.approx(apart - found.seconds)


def test_a_single_link_saves_nothing() -> None:
    assert Beside((Stage(1, 2.0, 3.0),), 0.0, 1.0).saved == 0
