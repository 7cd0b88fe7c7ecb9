"""Checkpoints: whole or not there, checked when opened, the last few kept, one sentence for each damage."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anew.errors import UserError
from anew.train import checkpoint as module
from anew.train.checkpoint import Checkpoints, open_checkpoint


def contents(step: int) -> tuple[dict, dict]:
    return {"model": {"w": torch.full((3, 2), float(step)), "n": torch.tensor(step)}}, {"state": {"step": step}}


def save(folder: Path, *steps: int, keep: int = 2) -> Path:
    checkpoints = Checkpoints(folder, keep)
    return [checkpoints.save(step, *contents(step)) for step in steps][-1]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    transposed = torch.arange(6.0).view(2, 3).t()
    path = Checkpoints(tmp_path).save(
        7, {"model": {"w": transposed}, "empty": {}}, {"state": {"lr": 0.1}, "none": None}
    )
    found = open_checkpoint(path)
    assert path.name == "checkpoint-7"
    assert found.tensors("model")["w"].equal(transposed)
    assert found.tensors("empty") == {}
    assert (found.document("state"), found.document("none")) == ({"lr": 0.1}, None)
    assert Checkpoints(tmp_path).latest() == path
    assert names(path) == ["empty.safetensors", "manifest.json", "model.safetensors", "none.json", "state.json"]


def test_the_newest_are_kept_and_an_older_one_can_be_gone_on_from(tmp_path: Path) -> None:
    save(tmp_path, 2, 10, 100)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-100", "latest"]
    save(tmp_path, 20)
    assert Checkpoints(tmp_path).latest() == tmp_path / "checkpoint-20"
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-100", "checkpoint-20", "latest"]
    save(tmp_path, 100, keep=1)
    assert names(tmp_path) == ["checkpoint-100", "latest"]
    Checkpoints(tmp_path).clear()
    assert names(tmp_path) == []
    assert Checkpoints(tmp_path).latest() is None


def test_what_a_kill_left_behind_is_listed_and_written_over(tmp_path: Path) -> None:
    save(tmp_path, 1)
    stale = tmp_path / "checkpoint-2.partial"
    stale.mkdir()
    (stale / "model.safetensors").write_bytes(b"half")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.partial() == [stale]
    assert checkpoints.all() == [tmp_path / "checkpoint-1"]
    assert checkpoints.latest() == tmp_path / "checkpoint-1"
    (tmp_path / "checkpoint-0.removed.partial").mkdir()
    open_checkpoint(save(tmp_path, 2))
    assert checkpoints.partial() == []


def test_every_file_reaches_the_disk_before_the_folder_has_its_name(tmp_path: Path, monkeypatch) -> None:
    events = []
    sync, rename = module._sync, Path.rename

    def recording_sync(path):
        events.append(("sync", path.name))
        sync(path)

    def recording_rename(path, target):
        events.append(("rename", Path(target).name))
        return rename(path, target)

    monkeypatch.setattr(module, "_sync", recording_sync)
    monkeypatch.setattr(Path, "rename", recording_rename)
    save(tmp_path, 3)
    assert events == [
        ("sync", "model.safetensors"),
        ("sync", "state.json"),
        ("sync", "manifest.json"),
        ("sync", "checkpoint-3.partial"),
        ("rename", "checkpoint-3"),
        ("sync", tmp_path.name),
        ("sync", "latest.partial"),
        ("sync", tmp_path.name),
    ]


def damage_truncated(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def damage_flipped(path: Path) -> None:
    file = path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def damage_missing(path: Path) -> None:
    (path / "state.json").unlink()


def damage_manifest(path: Path) -> None:
    (path / "manifest.json").write_bytes(b'{"format": "anew ch\xff')


def make_foreign(path: Path) -> None:
    (path / "manifest.json").unlink()


def make_of_another_program(path: Path) -> None:
    (path / "manifest.json").write_text('{"files": {}}')


def make_of_the_future(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"version": 2}))


def remove(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_truncated, r"the checkpoint is damaged: .*model.safetensors has \d+ bytes, \d+ were written$"),
        (
            damage_flipped,
            r"the checkpoint is damaged: .*model.safetensors is not what was written, its SHA-256 differs$",
        ),
        (damage_missing, r"the checkpoint is damaged: cannot read .*state.json: No such file or directory$"),
        (damage_manifest, r"the checkpoint is damaged: cannot read .*manifest.json: .*codec can't decode"),
        (make_foreign, r"checkpoint-4 is not a checkpoint of anew: it has no manifest.json$"),
        (make_of_another_program, r'checkpoint-4 is not a checkpoint of anew: its manifest.json does not say "anew'),
        (make_of_the_future, r"checkpoint-4 is a checkpoint of version 2; this anew reads 1$"),
        (remove, r"there is no checkpoint folder .*checkpoint-4$"),
    ],
)
def test_a_checkpoint_that_is_none_is_one_sentence(tmp_path: Path, damage, sentence: str) -> None:
    path = save(tmp_path, 4)
    damage(path)
    with pytest.raises(UserError, match=sentence):
        open_checkpoint(path)


def test_a_file_that_a_checkpoint_does_not_have_is_named(tmp_path: Path) -> None:
    found = open_checkpoint(save(tmp_path, 4))
    with pytest.raises(UserError, match=r"checkpoint-4 holds no optimizer.safetensors"):
        found.tensors("optimizer")
    with pytest.raises(UserError, match=r"checkpoint-4 holds no run.json"):
        found.document("run")


@pytest.mark.parametrize("content", ["checkpoint-9", "../elsewhere", ""])
def test_a_pointer_to_nothing_names_the_checkpoints_there_are(tmp_path: Path, content: str) -> None:
    save(tmp_path, 4)
    (tmp_path / "latest").write_text(content)
    with pytest.raises(UserError, match=r"latest names no checkpoint: choose one .*checkpoint-4\)"):
        Checkpoints(tmp_path).latest()


def no_space(*arguments, **options):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("at", ["save_file", "_write_json", "_sync"])
def test_a_full_disk_is_one_sentence_and_the_old_checkpoint_stays(tmp_path: Path, monkeypatch, at: str) -> None:
    save(tmp_path, 4)
    monkeypatch.setattr(module, at, no_space)
    with pytest.raises(UserError) as raised:
        save(tmp_path, 5)
    assert str(raised.value) == (
        f"cannot write {tmp_path}/checkpoint-5: No space left on device; {tmp_path}/checkpoint-4 is whole; "
        "free some space or choose another folder"
    )
    assert names(tmp_path) == ["checkpoint-4", "latest"]
    assert open_checkpoint(tmp_path / "checkpoint-4").document("state") == {"step": 4}


LIMITED = """
import sys, resource, torch
from pathlib import Path
from anew.errors import UserError
from anew.train.checkpoint import Checkpoints
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    Checkpoints(Path(sys.argv[1])).save(5, {"model": {"w": torch.ones(50_000)}}, {})
except UserError as error:
    print(error)
"""


def test_a_file_that_the_system_refuses_to_grow_is_one_sentence(tmp_path: Path) -> None:
    save(tmp_path, 4)
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert f"{tmp_path}/checkpoint-4 is whole; free some space" in done.stdout
    assert done.stdout.count("\n") == 1
    assert names(tmp_path) == ["checkpoint-4", "latest"]
    open_checkpoint(tmp_path / "checkpoint-4")
