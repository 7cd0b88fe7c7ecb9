"""A run of `anew train` whose framework fails: it stops with one sentence, and goes on from its checkpoint."""

import json

import pytest

from anew.cli.main import main
from tests.unit.test_cli_device import MODEL

STEPS = 6
RUN = "execution_stream_execute_sync"


@pytest.fixture
def train(tmp_path, monkeypatch, fresh):
    """Train on an engine for some steps; returns the exit code. ``out`` names the run."""
    data, model = tmp_path / "text.txt", tmp_path / "small.json"
    data.write_text("It is a truth universally acknowledged, that a single man must be in want of a wife.\n" * 20)
    model.write_text(json.dumps(MODEL))
    sizes = f"--seq-len 16 --batch-size 2 --steps {STEPS} --save-every 2 --val-every {STEPS}"
    new = f"--preset {model} --data {data} {sizes}".split()

    def run(engine, out, resume=False):
        fresh()
        monkeypatch.setattr("anew.frontend.session.make_device", lambda options: engine)
        return main(["train", "--resume", str(out)] if resume else ["train", *new, "--out", str(out)])

    return run


def losses(folder):
    return [json.loads(line)["train_loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_failed_run_goes_on_from_its_checkpoint(make_fake, open_engine, train, tmp_path, capsys):
    clean = make_fake()
    assert train(open_engine(clean), tmp_path / "whole") == 0
    names = clean.calls
    position = next(i for i, name in enumerate(names, 1) if name == RUN and i > 0.7 * len(names))
    fake = make_fake()
    engine = open_engine(fake)
    fake.fail_at(position)
    capsys.readouterr()
    assert train(engine, tmp_path / "failed") == 1
    said = capsys.readouterr().err.splitlines()
    assert f"anew: error: execute: e5rt_{RUN} failed with e5rt code 77" in said[-1]
    assert train(engine, tmp_path / "failed", resume=True) == 0
    assert losses(tmp_path / "failed") == losses(tmp_path / "whole")
