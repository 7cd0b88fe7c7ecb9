"""`anew train --resume`: the same metrics to the last bit, and one sentence for what it refuses."""

import json
import signal
from pathlib import Path

import pytest

from anew.cli.main import main
from anew.train.loop import Loop
from evidence.kills import MODEL, TIMED, metrics

TEXT = "It is a truth universally acknowledged, that a single man must be in want of a wife.\n"


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text(TEXT * 40)
    (tmp_path / "small.json").write_text(json.dumps(MODEL))
    words = "--seq-len 32 --batch-size 2 --grad-accum 2 --steps 9 --val-every 4 --save-every 2 --lr 0.01 --seed 3"
    paths = ["--preset", f"{tmp_path}/small.json", "--data", f"{tmp_path}/text.txt", "--out", f"{tmp_path}/out"]
    return ["train", *paths, *words.split(), "--device", "cpu"]


def interrupt_in(monkeypatch, number: int) -> None:
    step = Loop._step

    def interrupted_step(self, at):
        step(self, at)
        if at == number:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Loop, "_step", interrupted_step)


@pytest.mark.usefixtures("terse")
@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_an_interrupted_run_goes_on_to_the_bit(arguments, tmp_path, capsys, monkeypatch, fresh, device):
    arguments = [*arguments, "--device", device]
    assert main(arguments) == 0
    expected = metrics(tmp_path / "out")
    out = tmp_path / "again"
    arguments[arguments.index("--out") + 1] = str(out)
    fresh()
    with monkeypatch.context() as patched:
        interrupt_in(patched, 4)
        assert main(arguments) == 130
    assert capsys.readouterr().err.endswith(f"anew: interrupted; go on with: anew train --resume {out}\n")
    assert (out / "latest").read_text() == "checkpoint-5\n"
    (out / "checkpoint-7.partial").mkdir()
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 6, "train_l')  # a line that was cut in half
    fresh()
    assert main(["train", "--resume", str(out)]) == 0
    shown = capsys.readouterr().out
    assert f"Ignored    {out}/checkpoint-7.partial: half-written" in shown
    assert f"Resuming   {out}/checkpoint-5\n" in shown
    assert metrics(out) == expected
    assert not TIMED & expected[0].keys()
    run = json.loads((out / "run.json").read_text())
    assert (run["status"], run["resumed_from"], run["steps"]) == ("finished", 5, 9)
    assert (out / "model" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model" / "model.safetensors"
    ).read_bytes()
    if device == "emulator":
        assert run["statistics"]["calibrations"] == 0


def test_a_run_goes_on_from_an_older_checkpoint_and_with_other_saving(arguments, tmp_path):
    assert main([*arguments, "--keep", "9"]) == 0
    expected = metrics(tmp_path / "out")
    out = tmp_path / "out"
    assert main(["train", "--resume", str(out / "checkpoint-4"), "--save-every", "3", "--keep", "1"]) == 0
    assert metrics(out) == expected
    assert [p.name for p in out.glob("checkpoint-*")] == ["checkpoint-9"]


def test_a_checkpoint_loads_in_transformers(arguments, tmp_path):
    from transformers import AutoModelForCausalLM

    assert main(arguments) == 0
    loaded = [AutoModelForCausalLM.from_pretrained(tmp_path / "out" / n) for n in ("model", "checkpoint-9")]
    for a, b in zip(*(m.state_dict().values() for m in loaded), strict=True):
        assert a.equal(b)


def refused(capsys, arguments: list[str]) -> str:
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said.removeprefix("anew: error: ").strip()


def test_what_contradicts_the_run_is_named(arguments, tmp_path, capsys):
    assert main(arguments) == 0
    out = tmp_path / "out"
    resume = ["train", "--resume", str(out)]
    said = refused(capsys, [*resume, "--lr", "0.5", "--seed", "3", "--preset", "tiny", "--device", "emulator"])
    assert said == (
        f"--resume goes on with {out} as it was begun: leave away --lr 0.5 (the run has 0.01), "
        "--device emulator (the run has cpu), --preset tiny (the run has small), or start another run"
    )
    assert "leave away --out" in refused(capsys, [*resume, "--out", str(tmp_path / "other")])
    assert main([*arguments, "--resume", str(out)]) == 0  # the same flags contradict nothing
    (tmp_path / "text.txt").write_text(TEXT * 41)
    assert "text.txt or its tokenizer is not what the run" in refused(capsys, resume)


def test_a_run_that_did_not_finish_is_not_written_over(arguments, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt_in(patched, 2)
        assert main(arguments) == 130
    capsys.readouterr()
    before = metrics(tmp_path / "out")
    said = refused(capsys, arguments)
    assert said.startswith(f"{tmp_path}/out holds checkpoints of a run that did not finish: go on with --resume")
    assert metrics(tmp_path / "out") == before


def test_what_is_no_run_is_refused(arguments, tmp_path, capsys):
    assert refused(capsys, ["train", "--resume", "nowhere"]) == "there is no run at nowhere to go on with"
    assert "has no checkpoint to go on from" in refused(capsys, ["train", "--resume", str(tmp_path)])
    assert main(arguments) == 0
    capsys.readouterr()
    out = tmp_path / "out"
    (out / "metrics.jsonl").write_text("")
    assert "does not have iterations 0 to 9" in refused(capsys, ["train", "--resume", str(out)])
    file = out / "checkpoint-9" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert "the checkpoint is damaged" in refused(capsys, ["train", "--resume", str(out)])
    assert "keep must be at least 1" in refused(capsys, [*arguments, "--keep", "0"])


def test_divergence_names_the_last_good_checkpoint(arguments, tmp_path, capsys, monkeypatch):
    step = Loop._step

    def failing_step(self, at):
        if at == 5:
            next(iter(self.model.parameters())).data.fill_(float("nan"))
        step(self, at)

    monkeypatch.setattr(Loop, "_step", failing_step)
    said = refused(capsys, arguments)
    assert said.startswith("training stopped in step 6: the loss is nan")
    assert said.endswith(f"the last good checkpoint is {tmp_path}/out/checkpoint-4")


def test_a_full_disk_during_a_save_is_one_sentence(arguments, tmp_path, capsys, monkeypatch):
    from anew.train import checkpoint

    save_file = checkpoint.save_file

    def filling(tensors, path, **options):
        if "checkpoint-6" in str(path):
            raise OSError(28, "No space left on device")
        save_file(tensors, path, **options)

    monkeypatch.setattr(checkpoint, "save_file", filling)
    said = refused(capsys, arguments)
    assert said.startswith(f"cannot write {tmp_path}/out/checkpoint-6: No space left on device; ")
    assert f"{tmp_path}/out/checkpoint-4 is whole" in said
    monkeypatch.undo()
    assert main(["train", "--resume", str(tmp_path / "out")]) == 0
