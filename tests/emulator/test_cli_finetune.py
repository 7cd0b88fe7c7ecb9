"""`anew finetune` on a tiny Llama: losses against plain PyTorch and peft, what is left behind, resuming, bad input."""

import html
import json
import re
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from anew.cli.main import main
from anew.finetune import check
from anew.finetune.adapt import adapt
from anew.finetune.config import resolve
from anew.train.loop import Loop
from evidence.kills import TIMED
from tests.pretrained import make_tokenizer, save_pretrained

pytestmark = pytest.mark.usefixtures("fresh")

WORDS = ("cat", "moon", "lamp", "tree", "road", "lake")  # one batch has padding, all have one length
LAST_LAYER = ["--num-layers", "1"]
ROWS = [{"prompt": f"what is a {word}", "completion": f"{word}s are things"} for word in WORDS]


@pytest.fixture
def arguments(tmp_path: Path, llama) -> list[str]:
    """A command that trains adapters on both layers of a tiny Llama for six steps."""
    save_pretrained(llama(vocab_size=264, eos_token_id=0), tmp_path / "model")
    (tmp_path / "data").mkdir()
    for split in ("train", "valid", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = "--train --num-layers 2 --batch-size 2 --iters 6 --steps-per-report 2 --steps-per-eval 4 --save-every 3"
    paths = ["--model", f"{tmp_path}/model", "--data", f"{tmp_path}/data", "--adapter-path", f"{tmp_path}/out"]
    return ["finetune", *paths, *words.split(), "--learning-rate", "0.01", "--seed", "3", "--device", "cpu"]


def records(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


def refused(capsys, arguments: list[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said.removeprefix("anew: error: ").strip()


def plain_losses(folder: Path, steps: int, **adapter) -> list[float]:
    """Losses of the same run in PyTorch and peft alone: own loop, own batches, own loss."""
    tokenizer = make_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    torch.manual_seed(3)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=160, target_modules=targets, **adapter))
    rows = []
    for row in ROWS:
        talk = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        rows.append(tokenizer.apply_chat_template(talk, return_dict=False))
    rows.sort(key=len)
    groups = [rows[at : at + 2] for at in range(0, len(rows), 2)]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    import numpy as np

    losses = []
    for step in range(steps):
        epoch, at = divmod(step, len(groups))
        group = groups[np.random.default_rng((3, epoch)).permutation(len(groups))[at]]
        terms = []
        for ids in map(torch.tensor, group):
            logits = model(input_ids=ids[None]).logits[0, :-1]
            terms.append(F.cross_entropy(logits, ids[1:], reduction="none"))
        loss = torch.cat(terms).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("kind", "layers", "adapter"),
    [("lora", ["--num-layers", "2"], {}), ("dora", LAST_LAYER, {"use_dora": True, "layers_to_transform": [1]})],
    ids=["lora", "dora of the last layer"],
)
def test_losses_are_those_of_plain_pytorch_and_peft(arguments, tmp_path, capsys, request, kind, layers, adapter):
    if kind == "dora":
        request.getfixturevalue("terse")
    wanted = plain_losses(tmp_path, 6, **adapter)
    assert main([*arguments, *layers, "--device", "emulator", "--fine-tune-type", kind]) == 0
    found = [record["train_loss"] for record in records(tmp_path / "out")[1:]]
    assert found == pytest.approx(wanted, rel=0.01)
    assert found[-1] < found[0] - 0.1
    shown = capsys.readouterr().out
    assert re.search(r"^Iter 2: Train loss \d.*, Trained Tokens \d+, Peak mem [\d.]+ GB, emulated$", shown, re.M)
    assert re.search(r"^Trainable parameters: [\d.]+% \([\d.]+M/[\d.]+M\)$", shown, re.M)
    assert "Adapters   B A counts 20 times" in shown
    assert re.search(r"trained tensors changed; logits of the device are within [\d.e-]+ of the host's$", shown, re.M)
    assert f"Saved final weights to {tmp_path}/out/adapters.safetensors." in shown
    projected = json.loads((tmp_path / "out" / "run.json").read_text())["projection"]
    assert ("chips" in projected) == (kind == "lora")


def test_what_a_run_leaves_behind(arguments, tmp_path, capsys):
    assert main([*arguments, "--test"]) == 0
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "adapters.safetensors", "metrics.jsonl"}
    assert names >= {"0000003_adapters.safetensors", "0000006_adapters.safetensors", "checkpoint-6", "run.json"}
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["num_layers"], config["lora_parameters"]["rank"], config["lora_alpha"]) == (2, 8, 160)
    assert config["iters"] == 6
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, out)
    state = load_file(out / "checkpoint-6" / "model.safetensors")
    for name, x in state.items():
        assert x.equal(tuned.state_dict()[name]), name
    last = records(out)[-1]
    assert "what is a" in last["sample"]
    assert last["sample"] in html.unescape((out / "report.html").read_text())
    tested = float(re.search(r"^Test loss ([\d.]+), Test ppl", capsys.readouterr().out, re.M)[1])
    assert tested == pytest.approx(last["val_loss"], abs=5e-4)  # the same rows
    arguments.remove("--train")
    assert main([*arguments, "--test"]) == 0  # of the adapter in --adapter-path
    assert float(re.search(r"^Test loss ([\d.]+),", capsys.readouterr().out, re.M)[1]) == tested
    run = json.loads((out / "run.json").read_text())
    assert (run["status"], run["steps"], run["last_val_loss"]) == ("finished", 6, last["val_loss"])
    assert run["trained_parameters"] == sum(x.numel() for x in state.values())


@pytest.mark.usefixtures("terse")
def test_a_base_of_8_bits_learns_as_plain_pytorch_does(arguments, tmp_path):
    arguments += LAST_LAYER
    assert main(arguments) == 0
    wanted = [record["train_loss"] for record in records(tmp_path / "out")[1:]]
    arguments[arguments.index("--adapter-path") + 1] = str(tmp_path / "baked")
    assert main([*arguments, "--device", "emulator", "--base-bits", "8"]) == 0
    found = [record["train_loss"] for record in records(tmp_path / "baked")[1:]]
    assert found == pytest.approx(wanted, rel=0.02)
    assert found != wanted


def test_bits_of_the_base_are_checked(arguments, capsys):
    assert refused(capsys, [*arguments, "--base-bits", "4"]) == "--base-bits must be one of 0, 8, 16, not 4"


@pytest.mark.usefixtures("terse")
@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_an_interrupted_run_goes_on_to_the_bit(arguments, tmp_path, monkeypatch, fresh, llama, device):
    if device == "emulator":
        save_pretrained(llama(layers=1, vocab_size=264, eos_token_id=0), tmp_path / "model")
        (tmp_path / "data" / "valid.jsonl").unlink()
    arguments += [*LAST_LAYER, "--device", device, "--grad-accumulation-steps", "4", "--max-grad-norm", "0.5"]
    assert main(arguments) == 0
    expected = records(tmp_path / "out")
    weights = (tmp_path / "out" / "adapters.safetensors").read_bytes()
    arguments[arguments.index("--adapter-path") + 1] = str(tmp_path / "again")
    step = Loop._step

    def interrupted_step(self, at):
        step(self, at)
        if at == 4:  # one batch after the optimizer's first step: its gradient waits
            signal.raise_signal(signal.SIGINT)

    fresh()
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_step", interrupted_step)
        assert main(arguments) == 130
    fresh()
    assert main(["finetune", "--resume", str(tmp_path / "again")]) == 0
    assert records(tmp_path / "again") == expected
    assert (tmp_path / "again" / "adapters.safetensors").read_bytes() == weights


def test_training_goes_on_from_adapters_of_a_file(arguments, tmp_path):
    assert main(arguments) == 0
    last = records(tmp_path / "out")[-1]["val_loss"]
    again = [*arguments, "--adapter-path", f"{tmp_path}/again", "--resume-adapter-file"]
    assert main([*again, f"{tmp_path}/out/adapters.safetensors"]) == 0
    assert records(tmp_path / "again")[0]["val_loss"] == pytest.approx(last, rel=1e-6)


@pytest.mark.usefixtures("terse")
def test_full_fine_tuning_of_the_last_layer_packed_with_recomputation(arguments, tmp_path):
    words = "--fine-tune-type full --num-layers 1 --packing --grad-checkpoint --max-seq-length 64 --device emulator"
    assert main([*arguments, *words.split()]) == 0
    weights = load_file(tmp_path / "out" / "adapters.safetensors")
    assert all(name.startswith("model.layers.1.") for name in weights)
    losses = [record["val_loss"] for record in records(tmp_path / "out") if record["val_loss"]]
    assert losses[-1] < losses[0]


def test_what_trains_is_the_last_layers(llama):
    chosen = {"train": True, "num_layers": 1}
    model = adapt(llama(layers=3), resolve({**chosen, "lora_parameters": {"rank": 2, "alpha": 6, "rslora": True}}))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".layers.2." in name and "lora_" in name for name in trained)
    assert model.base_model.model.model.layers[2].mlp.up_proj.scaling["default"] == pytest.approx(6 / 2**0.5)
    keys = {"keys": ["self_attn.q_proj", "v_proj"]}
    model = adapt(llama(), resolve({**chosen, "lora_parameters": keys}))
    trained = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rpartition(".layers.1.")[2] for name in trained} == {"self_attn.q_proj", "self_attn.v_proj"}


class TestFirstSave:
    def test_training_that_changed_nothing(self, llama):
        model = adapt(llama(), resolve({"train": True, "num_layers": 1}))
        first = check.FirstSave(model)
        ids = torch.ones(1, 8, dtype=torch.int64)
        assert first.check(model, ids) is None  # nothing was updated yet
        first.updated = True
        with pytest.raises(check.AnewError, match="no weight changed in training"):
            first.check(model, ids)

    def test_an_adapter_that_no_gradient_reached(self, llama):
        model = adapt(llama(), resolve({"train": True, "num_layers": 1}))
        first = check.FirstSave(model)
        first.updated = True
        next(p for p in model.parameters() if p.requires_grad).data += 1  # an A
        with pytest.raises(check.AnewError, match=r"lora_B.default.weight' is still zero after training"):
            first.check(model, torch.ones(1, 8, dtype=torch.int64))

    def test_a_device_that_computes_with_other_weights(self, arguments, tmp_path, capsys, monkeypatch):
        twin = check.plain_twin

        def twin_with_new_weights(model):
            found = twin(model)
            base = found.base_model.model.model.layers[1].mlp.down_proj.base_layer
            base.weight = torch.nn.Parameter(base.weight * 1.5)  # in place of the one that it shares
            return found

        monkeypatch.setattr(check, "plain_twin", twin_with_new_weights)
        (tmp_path / "data" / "valid.jsonl").unlink()
        said = refused(capsys, [*arguments, *LAST_LAYER, "--device", "emulator", "--iters", "1"])
        assert said.startswith("the device's logits differ from the host's by ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "no/such/model"], "there is no model at no/such/model: no such file or folder"),
        (["--num-layers", "3"], "--num-layers 3 is more than the 2 layers of the model"),
        (["--resume-adapter-file", "nothing.safetensors"], "there are no adapter weights at nothing.safetensors"),
        (["--resume-adapter-file", "{tmp}/other.safetensors"], "for this model"),
        (
            ["--config", "{tmp}/keys.yaml"],
            "lora_parameters: 'w' is no linear module of a layer; there are mlp.down_proj",
        ),
        (["--resume", "{tmp}"], "{tmp} has no checkpoint to go on from: start the run again without --resume"),
        (["--data", "{tmp}/empty"], "{tmp}/empty holds no rows to train on: train.jsonl is missing or empty"),
        (["--adapter-path", "{tmp}/file/x"], "cannot make the folder {tmp}/file/x for --adapter-path"),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments, tmp_path, capsys, words, said):
    (tmp_path / "keys.yaml").write_text("lora_parameters: {keys: [w]}")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "valid.jsonl").write_text(json.dumps(ROWS[0]))
    save_file({"model.layers.0.mlp.up_proj.lora_a": torch.ones(3, 3)}, tmp_path / "other.safetensors")
    assert said.format(tmp=tmp_path) in refused(capsys, [*arguments, *(w.format(tmp=tmp_path) for w in words)])


def test_a_run_that_did_not_finish_is_not_written_over(arguments, tmp_path, capsys):
    assert main(arguments) == 0
    state = tmp_path / "out" / "checkpoint-6"
    state.rename(tmp_path / "gone")
    (tmp_path / "out" / "latest").write_text("checkpoint-3\n")
    said = refused(capsys, arguments)
    assert said.endswith("choose another --adapter-path, or delete them")
    said = refused(capsys, ["train", "--resume", f"{tmp_path}/out"])
    assert said == f"{tmp_path}/out is a run of anew finetune: go on with anew finetune --resume {tmp_path}/out"
    said = refused(capsys, ["finetune", "--resume", f"{tmp_path}/out", "--batch-size", "3"])
    assert "leave away --batch-size 3 (the run has 2)" in said
    said = refused(capsys, ["finetune", "--resume", f"{tmp_path}/out", "--config", "other.yaml"])
    assert said == "--resume goes on with the run's own settings: leave --config away, or start a new run"


def test_a_validation_set_is_not_needed(arguments, tmp_path, capsys):
    (tmp_path / "data" / "valid.jsonl").unlink()
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "Validation set not found or empty" in shown
    assert "No validation data; 6 steps" in shown
