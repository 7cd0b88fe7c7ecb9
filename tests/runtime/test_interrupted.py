"""A run of `anew train` whose framework fails: it stops with one sentence, and goes on from its checkpoint."""

import json

import pytest

from anew.cli.main import main
from anew.train.resume import Saver
from tests.unit.test_cli_device import MODEL

STEPS = 6
#: Of a resumed run before memory runs out: they reach beyond its first step.
LEASES = 60
RUN = "execution_stream_execute_sync"


@pytest.fixture
def train(tmp_path, monkeypatch, fresh, terse):
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


def test_a_run_that_fails_again_and_again_goes_on_from_its_checkpoint(
    make_fake, open_engine, train, tmp_path, capsys, monkeypatch
):
    """A call fails, then the compile budget of the process is spent, then memory runs out; then all is well."""

    def sentence():
        said = capsys.readouterr().err.splitlines()
        return said[-1]

    clean, saves, save = make_fake(), [], Saver.save
    with monkeypatch.context() as watched:
        watched.setattr(Saver, "save", lambda *a: (save(*a), saves.append(clean.library.fake_calls_made())))
        assert train(open_engine(clean), tmp_path / "whole") == 0
    failed = tmp_path / "failed"
    position = next(i for i, name in enumerate(clean.calls, 1) if name == RUN and i > saves[0])

    fake = make_fake()
    engine = open_engine(fake)
    fake.fail_at(position)
    assert train(engine, failed) == 1
    said = sentence()
    assert "anew: error: training stopped in step " in said
    assert f"execute: e5rt_{RUN} failed with e5rt code 77" in said
    assert f"the last good checkpoint is {failed}/checkpoint-2" in said

    fake = make_fake(compiles=2)  # one of them shows the row stride
    assert train(open_engine(fake), failed, resume=True) == 1
    said = sentence()
    assert "compile: e5rt_e5_compiler_compile failed with e5rt code 11" in said
    assert "the compile budget of the process is spent" in said
    assert f"the last good checkpoint is {failed}/checkpoint-2" in said

    fake = make_fake()
    engine = open_engine(fake)
    lease, left = engine.buffers.lease, iter(range(LEASES))
    monkeypatch.setattr(engine.buffers, "lease", lambda *a: lease(*a) if next(left, None) is not None else no_memory())
    assert train(engine, failed, resume=True) == 1
    said = sentence()
    assert "memory ran out: use smaller batches or shorter rows" in said
    assert f"the last good checkpoint is {failed}/checkpoint-" in said

    fake = make_fake()
    assert train(open_engine(fake), failed, resume=True) == 0
    assert losses(failed) == losses(tmp_path / "whole")


def no_memory():
    raise MemoryError
