"""Two chains of work beside each other: never more than one after the other, never less than the memory allows."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anew.estimate.counted import Counted, Setting
from anew.estimate.overlap import Beside, Stage
from anew.estimate.step import Estimate, project
from anew.finetune.options import FinetuneConfig
from anew.projection import Work, read_rates
from anew.projection.machine import read_machine

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


def projected(trained_layers: int = 0, **head: float) -> Estimate:
    """A step of six layers of 1M parameters with a table of 1M, all gradients held; or of the last layers alone."""
    config = SimpleNamespace(num_hidden_layers=6, hidden_size=1000, vocab_size=1000, tie_word_embeddings=True)
    tuning = FinetuneConfig(num_layers=trained_layers, fine_tune_type="full") if trained_layers else None
    forward, backward = Work(weight_bytes=12e6, matmul=1e10), Work(weight_bytes=24e6, matmul=2e10)
    trained = trained_layers * 1e6 or 7e6
    loss = Work(matmul=1e9)
    total = forward + backward + loss * 3
    counted = Counted(total, forward, backward, 7e6, trained, 0, 0, 8, 0, held=trained, loss=loss, **head)
    return project(Setting(config, 256, 1, tuning=tuning), counted, "m4", read_rates("m4"), read_machine("m4"))


def test_a_layer_alone_overlaps_with_nothing() -> None:
    found = projected(trained_layers=1)
    assert found.overlap == 0
    assert projected(trained_layers=2).overlap > 0


def test_norms_of_all_layers_but_the_last_are_found_beside_the_backward_pass() -> None:
    norms = 2 * 6e6 * 15 / 16 / (read_machine("m4").memory_gb_s * 1e9 * 5 / 6)
    assert projected(terms=1.0, tiles=2.0, chunks=1.0).looks.saved == pytest.approx(norms * 5 / 6)


def test_a_table_that_comes_last_is_stepped_beside_the_forward_pass_too() -> None:
    first, last = projected(), projected(terms=1.0, tiles=4.0, chunks=1.0)
    table = 28 * 1e6 / (read_machine("m4").memory_gb_s * 1e9 * 5 / 6)
    assert first.beside.saved < last.beside.saved <= first.beside.saved + table
    assert projected(terms=2.0, tiles=4.0, chunks=2.0).beside.saved <= last.beside.saved
