"""`--report-to` of `anew train` and `anew finetune`: what the services read is what metrics.jsonl has."""

import json
import os
import sqlite3
import struct
import subprocess
import sys

import pytest

from anew.cli.main import main
from tests.pretrained import save_pretrained

TAGS = {
    "train/loss": "train_loss",
    "eval/loss": "val_loss",
    "train/learning_rate": "learning_rate",
    "train/grad_norm": "grad_norm",
    "train/trained_tokens": "trained_tokens",
}


def check_tensorboard(logs, folder, after=-1):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    events = reader.EventAccumulator(str(logs)).Reload()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for tag, name in TAGS.items():
        wanted = [(r["iteration"], r[name]) for r in records if r[name] is not None and r["iteration"] > after]
        found = [(e.step, e.value) for e in events.Scalars(tag)]
        assert found == [(step, pytest.approx(value)) for step, value in wanted], tag
    settings = events.Tensors("args/text_summary")[0].tensor_proto.string_val[0]
    assert json.loads(settings) == json.loads((folder / "run.json").read_text())["config"]


@pytest.fixture
def train(tmp_path, llama):
    data, model = tmp_path / "text.txt", tmp_path / "small.json"
    data.write_text("It is a truth universally acknowledged, that a single man must be in want of a wife.\n" * 40)
    model.write_text(json.dumps(llama(layers=1, vocab_size=288).config.to_dict()))
    words = f"train --preset {model} --data {data} --seq-len 32 --batch-size 2 --steps 4 --val-every 2 --device cpu"
    return [*words.split(), "--out", str(tmp_path / "out")]


def test_train_reports_to_tensorboard(train, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    assert main([*train, "--report-to", "tensorboard"]) == 0
    check_tensorboard(tmp_path / "logs", tmp_path / "out")


def test_a_resumed_run_may_begin_to_report(train, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    assert main([*train, "--save-every", "2"]) == 0
    checkpoint = tmp_path / "out/checkpoint-2"
    assert main(["train", "--resume", str(checkpoint), "--report-to", "tensorboard"]) == 0
    check_tensorboard(tmp_path / "logs", tmp_path / "out", after=2)


def test_finetune_reports_to_tensorboard(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    save_pretrained(llama(vocab_size=264, eos_token_id=0), tmp_path / "model")
    for split in ("train", "valid"):
        (tmp_path / f"{split}.jsonl").write_text('{"prompt": "what is a cat", "completion": "an animal"}\n' * 4)
    words = f"finetune --train --model {tmp_path}/model --data {tmp_path} --adapter-path {tmp_path}/out --device cpu"
    flags = "--iters 4 --batch-size 2 --num-layers 2 --steps-per-eval 2 --report-to tensorboard --project-name trees"
    assert main([*words.split(), *flags.split()]) == 0
    check_tensorboard(tmp_path / "logs", tmp_path / "out")


def test_train_reports_to_wandb(train, tmp_path):
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="no wandb")
    in_a_process_of_its_own([*train, "--report-to", "wandb"], WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    found = []
    for content in wandb_records(file.read_bytes()):
        record = messages.Record.FromString(content)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            found.append({name: json.loads(value) for name, value in items.items()})
    check_reported(found, tmp_path / "out")


def in_a_process_of_its_own(command, **environment):
    """These services read their settings when they are imported, and write the last at the end of a process."""
    subprocess.run([sys.executable, "-m", "anew", *command], env={**os.environ, **environment}, check=True)


def wandb_records(content):
    """The records of a small .wandb file: a header of 7 bytes, then for each checksum, length and kind."""
    at = 7
    while at < len(content):
        _, size, kind = struct.unpack_from("<IHB", content, at)
        assert kind == 1, "a record over several blocks"
        yield content[at + 7 : at + 7 + size]
        at += 7 + size


def test_train_reports_to_trackio(train, tmp_path):
    pytest.importorskip("trackio", reason="no trackio")
    command = [*train, "--report-to", "trackio", "--project-name", "trees"]
    in_a_process_of_its_own(command, TRACKIO_DIR=str(tmp_path / "trackio"))
    with sqlite3.connect(tmp_path / "trackio/trees.db") as database:
        found = [json.loads(row[0]) for row in database.execute("select metrics from metrics order by step")]
    check_reported(found, tmp_path / "out")


def check_reported(found, folder):
    """Rows that a service got are the records of the run; values that were not measured are left out."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(found) == len(records)
    for row, record in zip(found, records, strict=True):
        wanted = {tag: pytest.approx(record[name]) for tag, name in TAGS.items() if record[name] is not None}
        assert {tag: row[tag] for tag in TAGS if tag in row} == wanted


@pytest.mark.parametrize(
    ("name", "said"),
    [("tensorbord", "--report-to tensorbord: tensorbord is not supported"), ("wandb", "--report-to wandb: ")],
)
def test_a_service_that_is_not_there_is_refused_before_anything_is_done(
    train, tmp_path, capsys, monkeypatch, name, said
):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    assert main([*train, "--report-to", name]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
