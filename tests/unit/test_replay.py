"""The replayed schedules do the arithmetic that their projects publish, and none is priced with its own timed parts."""

import pytest

from evidence import replay
from evidence.replay import QWEN, SCHEDULES, STORIES, STORIES_COMPACT, dynamic, restaged, static


def test_the_static_kernels_compute_what_the_trainer_prints_and_leaves_out() -> None:
    """It prints 93.0 GFLOP on the engine for 12 layers, and does not count the forward attention's 2.4."""
    engine, host = static(STORIES)
    assert (engine * STORIES.layers).matmul == pytest.approx(93.0e9 + 2.4e9, rel=0.01)
    assert (engine * STORIES.layers).dispatches == 72
    assert host.beside * 12 == pytest.approx(43.487e9, rel=1e-4)


def test_the_dynamic_kernels_are_nine_then_ten_to_a_layer_and_compute_the_same() -> None:
    assert restaged(STORIES_COMPACT)[0].dispatches == 9
    assert (dynamic(STORIES_COMPACT)[0] * 12).dispatches == 120
    assert (dynamic(QWEN)[0] * QWEN.layers).dispatches == 280
    assert dynamic(STORIES_COMPACT)[0].matmul == restaged(STORIES_COMPACT)[0].matmul == static(STORIES)[0].matmul


def test_the_packed_inputs_have_the_sizes_that_the_source_gives() -> None:
    """The input of sdpaFwd is 768 channels of 256 + 4 x 768 fp32 numbers, its output 6 x 768 of 256."""
    work = STORIES.packed(768, 4 * 768**2, 6 * 768, 4)
    assert work.weight_bytes == 4 * 768 * (256 + 4 * 768) + 4 * 6 * 768 * 256


def test_no_step_is_priced_with_its_own_timed_parts() -> None:
    assert replay.dearest({"own": 9.0, "a": 1.0, "b": 2.0}, "own") == 2.0
    for schedule in SCHEDULES:
        host = replay.amounts(schedule)[1]
        parts, _ = replay.host_seconds(host, schedule)
        others = {s: p for s, p in replay.CONVERSIONS.items() if s != schedule.parts}
        assert parts["conversions"] == pytest.approx(host.converted * max(others.values()))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.key)
def test_every_published_step_is_projected_within_the_bar(schedule: replay.Schedule) -> None:
    assert abs(replay.project(schedule)["miss_percent"]) <= 100 * replay.ALLOWED
