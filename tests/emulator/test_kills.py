"""A run that is killed at random moments goes on as if nothing had happened; `python -m evidence kills` does 20."""

from pathlib import Path

from evidence.kills import survive
from tests.processes import Started


def test_a_killed_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    found = survive(tmp_path, kills=3, steps=120, device="cpu", seed=1, launch=Started, starting=1.0)
    assert found["kills"] == 3
    assert len(set(found["checkpoint_at_kill"]) - {0}) > 1  # some came after a new checkpoint
    assert found["broken_files"] == []
    assert found["records"] == 121
    assert found["records_that_differ"] == 0
