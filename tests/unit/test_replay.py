"""The replayed schedules do the arithmetic that their projects publish."""

import pytest

from evidence.replay import QWEN, STORIES, STORIES_COMPACT, dynamic, static


def test_the_static_kernels_compute_what_the_trainer_prints_and_leaves_out() -> None:
    """It prints 93.0 GFLOP on the engine for 12 layers, and does not count the forward attention's 2.4."""
    assert (static(STORIES) * STORIES.layers).matmul == pytest.approx(93.0e9 + 2.4e9, rel=0.01)
    assert (static(STORIES) * STORIES.layers).dispatches == 72


def test_the_dynamic_kernels_are_ten_to_a_layer_and_compute_the_same() -> None:
    assert (dynamic(STORIES_COMPACT) * 12).dispatches == 120
    assert (dynamic(QWEN) * QWEN.layers).dispatches == 280
    assert dynamic(STORIES_COMPACT).matmul == static(STORIES).matmul
