"""`anew train` from the command line: what it leaves, what it prints, what it exits with."""

import json
import signal
import subprocess
import sys

import pytest

from anew.cli.main import main
from anew.train.loop import Loop

TEXT = "It is a truth universally acknowledged, that a single man must be in want of a wife.\n"
MODEL = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 288,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
KEYS = [
    "iteration",
    "train_loss",
    "val_loss",
    "learning_rate",
    "grad_norm",
    "seconds",
    "tokens_per_second",
    "trained_tokens",
    "loss_scale",
    "rescaled",
    "peak_memory",
    "joules",
    "device_seconds",
    "sample",
]


@pytest.fixture
def arguments(tmp_path):
    data = tmp_path / "text.txt"
    data.write_text(TEXT * 40)
    model = tmp_path / "small.json"
    model.write_text(json.dumps(MODEL))
    words = f"train --preset {model} --data {data} --seq-len 32 --batch-size 2 --steps 12 --val-every 5 --lr 0.01"
    return [*words.split(), "--device", "cpu", "--seed", "3", "--out", str(tmp_path / "out")]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_everything_and_repeats_exactly(arguments, tmp_path, capsys):
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    out = tmp_path / "out"
    records = metrics(out)
    assert all(list(record) == KEYS for record in records)
    assert [r["iteration"] for r in records] == list(range(13))
    assert [r["iteration"] for r in records if r["val_loss"] is not None] == [0, 5, 10, 12]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")

    run = json.loads((out / "run.json").read_text())
    assert run["status"] == "finished"
    assert (run["device"], run["emulated"], run["programs"]) == ("cpu", False, 0)
    assert run["config"]["seq_len"] == 32
    assert run["first_val_loss"] == records[0]["val_loss"]
    assert run["last_val_loss"] == records[-1]["val_loss"] < 0.9 * run["first_val_loss"]
    assert {"anew", "torch", "transformers", "python"} <= set(run["versions"])
    assert run["parameters"] == 288 * 32 + 4 * 32 * 32 + 3 * 32 * 32 + 3 * 32

    assert "no engine is used" in shown
    assert "The trained model goes on from:" in shown
    assert "Iter 10: Train loss" in shown
    assert str(out / "model") in shown

    again = tmp_path / "again"
    assert main([*arguments, "--out", str(again)]) == 0
    timed = {"seconds", "tokens_per_second", "peak_memory", "joules", "device_seconds"}
    for a, b in zip(records, metrics(again), strict=True):
        assert {k: a[k] for k in a.keys() - timed} == {k: b[k] for k in b.keys() - timed}
    assert json.loads((again / "run.json").read_text())["sample"] == run["sample"]


def test_the_saved_model_loads_and_is_replaced_by_the_next_run(arguments, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    short = [*arguments, "--steps", "1"]
    assert main(short) == 0
    assert main(short) == 0
    saved = tmp_path / "out" / "model"
    assert (saved / "model.safetensors").exists()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "checkpoint-1",
        "latest",
        "loss.png",
        "metrics.jsonl",
        "model",
        "report.html",
        "run.json",
        "tokenizer.json",
    ]
    model = AutoModelForCausalLM.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert model.config.eos_token_id == tokenizer.eos_token_id == 0
    assert model.config.vocab_size == 288
    assert model.generation_config.use_cache


def test_interrupt_saves_and_exits_130(arguments, tmp_path, capsys, monkeypatch):
    step = Loop._step

    def interrupted_step(self, number):
        step(self, number)
        if number == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Loop, "_step", interrupted_step)
    assert main(arguments) == 130
    assert "anew: interrupted" in capsys.readouterr().err
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (run["status"], run["steps"]) == ("interrupted", 2)
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()
    assert (tmp_path / "out" / "loss.png").exists()


def test_divergence_exits_1_and_leaves_a_record(arguments, tmp_path, capsys):
    assert main([*arguments, "--lr", "1e30", "--warmup", "0"]) == 1
    assert capsys.readouterr().err.startswith("anew: error: training stopped in step ")
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["status"] == "failed"
    assert not (tmp_path / "out" / "model").exists()


def test_an_unexpected_error_is_one_sentence_and_a_file(arguments, tmp_path, capsys, monkeypatch):
    def broken_step(self, number):
        raise RuntimeError("gremlins\nin two lines")

    monkeypatch.setattr(Loop, "_step", broken_step)
    assert main(arguments) == 1
    path = tmp_path / "out" / "traceback.txt"
    said = capsys.readouterr().err
    assert said == f"anew: error: unexpected RuntimeError: gremlins; the traceback is in {path}\n"
    assert "in broken_step" in path.read_text()


def test_debug_shows_the_traceback(arguments, capsys, monkeypatch):
    monkeypatch.setenv("ANEW_DEBUG", "1")
    assert main([*arguments, "--data", "nowhere.txt"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--data", "nowhere.txt"], "cannot read nowhere.txt: No such file or directory"),
        (["--seq-len", "65"], "--seq-len 65 is longer than the 64 positions of the model small"),
        (["--steps", "0"], "--steps must be at least 1, not 0"),
        (["--preset", "nano"], "there is no preset 'nano': choose tiny, stories15m, stories110m"),
    ],
)
def test_bad_input_exits_1_with_one_sentence(arguments, capsys, changes, sentence):
    assert main([*arguments, *changes]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"anew: error: {sentence}")
    assert said.count("\n") == 1


def test_an_output_folder_that_is_a_file_is_named(arguments, tmp_path, capsys):
    assert main([*arguments, "--out", str(tmp_path / "text.txt")]) == 1
    assert "cannot make the folder" in capsys.readouterr().err


def test_no_data_exits_1(capsys):
    assert main(["train", "--preset", "tiny"]) == 1
    assert "give --data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--nonsense"], "anew train: error: unrecognized arguments: --nonsense (see anew train --help)"),
        (
            ["finetune", "--batchsize", "2"],
            "anew finetune: error: unrecognized arguments: --batchsize 2; did you mean --batch-size? (see",
        ),
        (["train", "--device", "gpu"], "anew train: error: argument --device: invalid choice: 'gpu'"),
        (["train", "--steps", "many"], "anew train: error: argument --steps: invalid int value: 'many'"),
        (["tarin"], "anew: error: argument VERB: invalid choice: 'tarin'"),
        ([], "anew: error: the following arguments are required: VERB"),
    ],
)
def test_misuse_exits_2_with_one_line(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(sentence)
    assert said.count("\n") == 1


def test_version_and_help(capsys):
    for flag in ("--version", "--help"):
        with pytest.raises(SystemExit) as exit_info:
            main([flag])
        assert exit_info.value.code == 0
    said = capsys.readouterr().out
    assert "anew 0.1.0" in said
    assert "train" in said


def test_help_does_not_wait_for_torch():
    code = "import sys, anew.cli.main as m; m.build_parser(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
