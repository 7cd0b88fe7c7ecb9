"""Training does not grow: a short form of `python -m evidence soak`."""

import sys
from pathlib import Path

import pytest

from evidence.soak import soak


@pytest.mark.skipif(sys.platform != "linux", reason="the samples come from /proc")
def test_memory_files_and_programs_do_not_grow(tmp_path: Path, fresh, terse) -> None:
    found = soak(tmp_path, 100)
    assert found["files_late"] == found["files_early"]
    assert found["programs_late"] == found["programs_early"] > 0
    assert found["megabytes_late"] < 1.02 * found["megabytes_early"]
