"""The record of what made a step cheaper: each commit is counted once; one that cannot be is listed with the reason."""

import pytest

from evidence import chain


def test_changes_are_over_their_parents_and_what_cannot_be_counted_is_listed() -> None:
    listed = [("b", "a", "Cheaper"), ("c", "b", "The same"), ("d", "c", "Broken"), ("e", "d", "Mended")]
    ms = {
        "a": {"batch_1": 9.0},
        "b": {"batch_1": 7.0},
        "c": {"batch_1": 7.01},
        "d": {"reason": "no"},
        "e": {"batch_1": 1.0},
    }
    found, uncounted = chain.gains(listed, ms)
    assert found == {"cb": {"subject": "Cheaper", "gain_batch_1_ms": 2.0}}
    broken = {"subject": "Broken", "reason": "no"}
    assert uncounted == {"cd": broken, "ce": {"subject": "Mended", "reason": "no"}}


def test_commits_that_run_the_same_are_counted_once(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    asked: list[str] = []
    monkeypatch.setattr(chain, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(chain, "git", lambda *words: "other" if "c" in words else "tree")
    monkeypatch.setattr(chain, "_count", lambda commit: asked.append(commit) or {"batch_1": len(asked)})
    assert [chain.projected(commit)["batch_1"] for commit in ("a", "b", "c", "a")] == [1, 1, 2, 1]
    assert asked == ["a", "c"]
