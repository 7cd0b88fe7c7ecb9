"""The scripts for Trainer and SFTTrainer at their smallest size, against themselves in plain PyTorch."""

from pathlib import Path

import pytest
from peft import PeftModel
from transformers import LlamaForCausalLM

TEXT = Path(__file__).parents[2] / "data/austen.txt"


@pytest.fixture
def ecosystem():
    pytest.importorskip("trl", reason="trl is not installed")
    from evidence import ecosystem

    return ecosystem


@pytest.mark.usefixtures("fresh")
def test_trainer_follows_plain_pytorch_and_resumes_to_the_bit(ecosystem, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT.read_bytes()[:16384])
    small = ["--data", str(text), "--length", "32", "--width", "32", "--learning_rate", "3e-3"]
    found = ecosystem.with_trainer(tmp_path, *small)
    assert found["last_loss"] < 0.9 * found["first_loss"]
    assert found["loss_deviation"] < 0.01
    assert found["eval_deviation"] < 0.01
    assert found["loss_region"]
    assert (found["resumed_losses_that_differ"], found["resumed_calibrations"]) == (0, 0)
    assert LlamaForCausalLM.from_pretrained(tmp_path / "engine").config.hidden_size == 32


@pytest.mark.usefixtures("fresh")
def test_sft_trainer_with_lora_follows_plain_pytorch(ecosystem, tmp_path):
    found = ecosystem.with_sft(tmp_path)
    assert found["last_loss"] < 0.97 * found["first_loss"]
    assert found["loss_deviation"] < 0.01
    assert found["dispatches"] >= found["steps"] * 2 * 2
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, tmp_path / "engine")
    assert any(x.abs().max() > 0 for name, x in loaded.named_parameters() if "lora_B" in name)
