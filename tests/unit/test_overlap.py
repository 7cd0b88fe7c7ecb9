"""Two chains of work beside each other: never more than one after the other, never less than the memory allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anew.estimate.overlap import Beside

SECONDS = st.floats(0, 10)


def pipeline(links: int, first: float, then: float) -> float:
    """The end of the last link, each of the second chain waiting for that of the first and for the one before it."""
    end = 0.0
    for at in range(1, links + 1):
        end = max(end, at * first / links) + then / links
    return end


@given(st.integers(1, 40), SECONDS, SECONDS)
def test_the_pipeline_is_what_following_it_link_by_link_gives(links: int, first: float, then: float) -> None:
    assert Beside(links, first, then, 0.0, 1.0).seconds == pytest.approx(pipeline(links, first, then))


@given(st.integers(1, 40), SECONDS, SECONDS, st.floats(0, 100))
def test_the_memory_holds_both_back_but_never_beyond_one_after_the_other(
    links: int, first: float, then: float, size: float
) -> None:
    found = Beside(links, first, then, size, 7.0)
    assert min(first + then, size / 7.0) <= found.seconds <= first + then
    assert found.saved == pytest.approx(first + then - found.seconds)


def test_a_single_link_saves_nothing() -> None:
    assert Beside(1, 2.0, 3.0, 0.0, 1.0).saved == 0
