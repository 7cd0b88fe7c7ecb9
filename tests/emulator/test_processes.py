"""`anew train` in two processes: the curve of one with twice the batch, a process that is killed, and going on."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anew.cli.main import main
from evidence.kills import TIMED
from tests.processes import Started

TEXT = Path(__file__).parents[2] / "data/austen.txt"
PATIENCE = 240.0
ONE_THREAD = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


@pytest.fixture
def command(tmp_path, llama):
    """`anew train` of a tiny Llama for 16 steps on the emulated engine, without batch size and folder."""
    (tmp_path / "text.txt").write_bytes(TEXT.read_bytes()[:20000])
    (tmp_path / "small.json").write_text(json.dumps(llama(layers=1, vocab_size=288).config.to_dict()))
    files = ["--preset", str(tmp_path / "small.json"), "--data", str(tmp_path / "text.txt")]
    words = "--seq-len 32 --grad-accum 2 --steps 16 --val-every 8 --save-every 4 --keep 9 --lr 0.01 --device emulator"
    return ["train", *files, *words.split()]


def torchrun(*arguments):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "anew", *arguments]
    done = subprocess.run(
        launch, env=os.environ | ONE_THREAD, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def two(*arguments):
    """Both processes, started by themselves: torchrun would end the second when the first has ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started.append(Started(arguments, place | ONE_THREAD))
    return started


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


def curve(found, name):
    return [record[name] for record in found if record[name] is not None]


@pytest.mark.usefixtures("fresh")
def test_two_processes(command, tmp_path, capsys):
    assert main([*command, "--batch-size", "4", "--out", str(tmp_path / "one")]) == 0
    shown = torchrun(*command, "--batch-size", "2", "--out", str(tmp_path / "two"))
    assert shown.count("Iter 0: Val loss") == 1  # the first process alone speaks
    assert "(2 x 32, accumulated 2 x, 2 processes)" in shown
    one, both = records(tmp_path / "one"), records(tmp_path / "two")
    for name in ("train_loss", "val_loss", "trained_tokens"):
        assert curve(both, name) == pytest.approx(curve(one, name), rel=1e-3)
    assert both[-1]["val_loss"] < 0.8 * both[0]["val_loss"]

    first, second = two(*command, "--batch-size", "2", "--out", str(tmp_path / "killed"))
    try:
        wait_for(tmp_path / "killed/checkpoint-4", first)
        second.kill()
        said = first.communicate(timeout=PATIENCE)[1]
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    assert first.returncode == 1
    assert "process 0 of 2 has lost another one" in said.splitlines()[-1]
    assert json.loads((tmp_path / "killed/run.json").read_text())["status"] == "failed"

    resume = ["train", "--resume", str(tmp_path / "killed")]
    assert main(resume) == 1
    assert "has 2 processes, not 1: go on with torchrun --nproc_per_node 2" in capsys.readouterr().err
    for process in two(*resume):
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    assert records(tmp_path / "killed") == both


def wait_for(path, process):
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_finetune_refuses_several_processes(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["finetune", "--train"]) == 1
    assert "anew finetune trains in one process" in capsys.readouterr().err
