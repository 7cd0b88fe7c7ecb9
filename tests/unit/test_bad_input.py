"""Bad input through the command line: one sentence, an exit code, and every file that was there is as it was."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anew.cli.main import main
from anew.train.checkpoint import Checkpoints, open_checkpoint
from anew.train.tokenizer import train_tokenizer
from tests.unit.test_cli_train import MODEL, TEXT

SMALL = "train --preset small.json --seq-len 32 --batch-size 2 --steps 2 --device cpu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run in `run`, its data text.txt, token files, and tokenizers that fit neither."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "small.json").write_text(json.dumps(MODEL))
    (folder / "text.txt").write_text(TEXT * 40)
    (folder / "short.txt").write_text("hello")
    (folder / "empty.txt").write_text("")
    (folder / "zeros.txt").write_bytes(b"\0\1" * 99)
    (folder / "latin.txt").write_bytes("café ".encode("latin-1") * 99)
    tokens = np.random.default_rng(0).integers(0, MODEL["vocab_size"], 2000).astype("<u2")
    tokens.tofile(folder / "tokens.bin")
    tokens[1234] = MODEL["vocab_size"]
    tokens.tofile(folder / "range.bin")
    numbers = " ".join(f"word{i * 7919 % 1000} {i}" for i in range(3000))
    train_tokenizer([TEXT * 20, numbers], 600, folder / "large.json")
    train_tokenizer(["ab"], 257, folder / "bytes.json")
    np.full(400, 280, "<u2").tofile(folder / "unknown.bin")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(f"{SMALL} --data text.txt --out run".split()) == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(words: str, capsys) -> str:
    capsys.readouterr()
    assert main(words.split()) == 1
    said = capsys.readouterr().err
    assert said.startswith("anew: error: ")
    assert said.count("\n") == 1
    assert "unexpected" not in said
    return said.removeprefix("anew: error: ").strip()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--data nowhere.txt", "cannot read nowhere.txt: No such file"),
        ("--data empty.txt", "empty.txt is empty"),
        ("--data short.txt", "the data is too short: it has 3 tokens, and --seq-len 32 needs 66"),
        ("--data zeros.txt", "zeros.txt is binary, not text: there is a NUL byte at offset 0"),
        ("--data latin.txt", "latin.txt is not UTF-8 text: byte 0xe9 at offset 3"),
        ("--data range.bin --tokenizer large.json", "range.bin does not fit the model: token 1234 is id 288"),
        ("--data tokens.bin --tokenizer large.json", "the tokenizer does not fit the model: it gives token id "),
        ("--data unknown.bin --tokenizer bytes.json", "bytes.json did not make the tokens of unknown.bin"),
        ("--data text.txt --tokenizer large.json", "the tokenizer does not fit the model: it gives token id "),
        ("--data text.txt --chip m9", "unknown chip 'm9'"),
        ("--data text.txt --seed 9223372036854775808", "--seed must be below 2^63"),
        ("--data text.txt --init-from run/model", "--preset and --init-from exclude each other"),
    ],
)
def test_a_new_run_refuses_before_it_trains(folder, tmp_path, monkeypatch, capsys, flags, sentence):
    monkeypatch.chdir(folder)
    before = contents(folder)
    assert refused(f"{SMALL} --out {tmp_path}/out {flags}", capsys).startswith(sentence)
    assert not list((tmp_path).glob("out/checkpoint-*"))
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--keep 0", "--keep must be at least 1, not 0"),
        ("--save-every -1", "--save-every must be 0 or more, not -1"),
        ("--chip m1 --numerics exact", "--resume goes on with run as it was begun: leave away --chip m1 "),
        ("--init-from run/model", "--resume goes on with run as it was begun: leave away --init-from run/model"),
        ("--data short.txt", "the data is too short"),
        ("--data nowhere.txt", "cannot read nowhere.txt"),
    ],
)
def test_a_run_that_goes_on_refuses_and_keeps_everything(folder, monkeypatch, capsys, flags, sentence):
    monkeypatch.chdir(folder)
    before = contents(folder)
    assert refused(f"train --resume run {flags}", capsys).startswith(sentence)
    assert contents(folder) == before


def manifest_of_numbers(path: Path) -> None:
    (path / "manifest.json").write_text(
        '{"format": "anew checkpoint", "version": 1, "files": {"model.safetensors": 3}}'
    )


def manifest_of_nothing(path: Path) -> None:
    (path / "manifest.json").write_text('{"format": "anew checkpoint", "version": 1, "files": {}}')


def forge(path: Path, name: str, content: bytes) -> None:
    """Write a file of a checkpoint as a program would that knows the manifest."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / name).write_bytes(content)
    (path / "manifest.json").write_text(json.dumps(manifest))


def without(key: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        state = json.loads((path / "trainer_state.json").read_text())
        del state[key]
        forge(path, "trainer_state.json", json.dumps(state).encode())

    return damage


def swapped(name: str, other: str) -> Callable[[Path], None]:
    return lambda path: forge(path, name, (path / other).read_bytes())


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (manifest_of_numbers, "is not a checkpoint of anew"),
        (manifest_of_nothing, "is not a checkpoint of anew"),
        (lambda path: forge(path, "trainer_state.json", b"[]"), "is not a checkpoint of a run"),
        (without("verb"), "its trainer_state.json has no 'verb'"),
        (without("step"), "its trainer_state.json has no 'step'"),
        (without("tokens"), "its trainer_state.json has no 'tokens'"),
        (
            swapped("model.safetensors", "optimizer.safetensors"),
            "does not fit the model: it has no 'model.embed_tokens",
        ),
        (swapped("random.safetensors", "gradients.safetensors"), "holds no state of PyTorch's random numbers"),
        (lambda path: forge(path, "model.safetensors", b"PK\3\4 a pickle"), "cannot read "),
    ],
)
def test_a_foreign_checkpoint_is_refused_and_kept(folder, tmp_path, capsys, monkeypatch, damage, sentence):
    monkeypatch.chdir(folder)
    copy = tmp_path / "run"
    shutil.copytree(folder / "run", copy)
    damage(copy / "checkpoint-2")
    before = contents(copy)
    assert sentence in refused(f"train --resume {copy}", capsys)
    assert contents(copy) == before


#: In a mount namespace of its own, on a disk of 600 kB that takes two checkpoints; then with room again.
FILLING = f"""
import contextlib, pathlib, shutil, subprocess
from anew.cli.main import main

def anew(words, said):
    with open(said, "w") as file:
        with contextlib.redirect_stderr(file):
            code = main(words.split())
        print(code, file=file)

subprocess.run("mount -t tmpfs -o size=600k none disk".split(), check=True)
pathlib.Path("mounted").touch()
anew("{SMALL} --data text.txt --out disk/run --steps 6 --save-every 1 --keep 9", "first")
shutil.copytree("disk/run", "kept")
subprocess.run("mount -o remount,size=50m disk".split(), check=True)
anew("train --resume disk/run", "second")
shutil.copytree("disk/run", "done")
"""


def test_a_disk_that_is_really_full(folder, tmp_path):
    for name in ("small.json", "text.txt"):
        shutil.copy(folder / name, tmp_path / name)
    (tmp_path / "disk").mkdir()
    try:
        subprocess.run(["unshare", "-rm", sys.executable, "-c", FILLING], cwd=tmp_path, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare on this system")
    if not (tmp_path / "mounted").exists():
        pytest.skip("this user may not mount a disk in a namespace")
    said, code = (tmp_path / "first").read_text().splitlines()
    kept = Checkpoints(tmp_path / "kept")
    last = kept.latest()
    assert code == "1"
    assert said.startswith("anew: error: cannot write disk/run/checkpoint-")
    assert "No space left on device" in said
    assert f"disk/run/{last.name} is whole; free some space or choose another folder" in said
    assert kept.all()
    assert not kept.partial()
    for path in kept.all():
        open_checkpoint(path)
    assert (tmp_path / "second").read_text() == "0\n"
    assert Checkpoints(tmp_path / "done").latest().name == "checkpoint-6"
