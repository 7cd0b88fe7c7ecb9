"""The walk through the first page: what is read from it, and that a step that fails ends it."""

from __future__ import annotations

import subprocess

import pytest

from evidence import walk
from evidence.record import ROOT

PAGE = """# Page

## 1. First

```sh
printf one >> said   # words
. ./here
```

```sh form
anew finetune --model MODEL
```

## 2. Second

```python
open("said", "a").write(" two")
```
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "here").write_text("python() { python3 $@; }\n")
    monkeypatch.setattr(walk, "LEFT", ("said",))
    return tmp_path


def test_the_steps_of_a_page_are_done_in_one_shell_and_timed_by_section(folder):
    (folder / walk.PAGE).write_text(PAGE)
    seconds = walk.walk(folder)
    assert (folder / "said").read_text() == "one two"
    assert seconds.keys() == {"1", "2"}
    assert all(0 < spent < 60 for spent in seconds.values())


def test_a_step_that_fails_ends_the_walk(folder):
    (folder / walk.PAGE).write_text(PAGE.replace(". ./here", "false"))
    with pytest.raises(subprocess.CalledProcessError):
        walk.walk(folder)


def test_the_walk_goes_from_nothing_to_a_tuned_model_and_its_report():
    commands = [command for _, command in walk.steps((ROOT / walk.PAGE).read_text())]
    assert commands[0] == "make demo"
    assert "make finetune-demo" in commands
    assert "anew report runs/finetune --open" in commands
    assert not any("MODEL" in command for command in commands)
