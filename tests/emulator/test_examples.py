"""The examples, each at its smallest honest size."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest
from peft import PeftModel
from transformers import LlamaForCausalLM

from evidence.record import ROOT
from tests.pretrained import save_pretrained

pytestmark = pytest.mark.usefixtures("fresh")
CHANCE = 0.25


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import an example as if it were run."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module


@pytest.mark.parametrize(("name", "steps"), [("vision_transformer", 60), ("convolutional_network", 30)])
def test_pictures_that_no_step_has_seen_are_named(example, name, steps):
    assert example(name).main(steps) > 2 * CHANCE


def test_the_layer_of_a_llama_is_on_the_engine(example, capsys):
    found = example("explain_llama_layer").main()
    assert found.coverage == 1.0
    assert "Operations that fell back to the host: 0" in capsys.readouterr().out


def test_the_custom_operation_falls_back_and_strict_names_it(example, capsys):
    said, refused = example("custom_operation").main()
    assert len(said) == 2
    assert all("it runs on the host" in warning for warning in said)
    assert "'examples.wave.default' has no lowering" in refused
    assert "custom_operation.py" in refused
    errors = [
        float(line.split(": ")[1].split()[0]) for line in capsys.readouterr().out.splitlines() if "from plain" in line
    ]
    assert len(errors) == 8
    assert max(errors) < 5e-3


def test_lora_with_the_trainer_follows_plain_pytorch(example, llama, tmp_path):
    base = save_pretrained(llama(vocab_size=261), tmp_path / "base")
    (tmp_path / "text.txt").write_text("It is a truth universally acknowledged. " * 20)
    flags = f"--model {base} --data {tmp_path}/text.txt --length 32 --rank 4 --use_cpu --max_steps 12 --logging_steps 1"
    losses = {}
    for device in ("emulator", "cpu"):
        own = f"--device {device} --learning_rate 1e-2 --report_to none --output_dir {tmp_path / device}"
        trainer = example("lora").main([*flags.split(), *own.split()])
        losses[device] = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses["emulator"] == pytest.approx(losses["cpu"], rel=5e-3)
    assert losses["emulator"][-1] < 0.97 * losses["emulator"][0]
    tuned = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), tmp_path / "emulator")
    assert any(x.abs().max() > 0 for name, x in tuned.named_parameters() if "lora_B" in name)


def test_an_example_runs_as_a_script():
    command = [sys.executable, "examples/custom_operation.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "With strict=True: region 1 forward" in done.stdout
