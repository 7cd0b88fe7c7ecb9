"""The scripts in examples/ at their smallest size, against themselves in plain PyTorch."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import anew
from examples import trainer as trainer_script

TEXT = Path(__file__).parents[2] / "data/austen.txt"
STEPS = 20
COMMON = [
    "--use_cpu",
    "--max_steps",
    str(STEPS),
    "--logging_steps",
    "1",
    "--report_to",
    "none",
    "--disable_tqdm",
    "True",
]
COMMON += ["--dataloader_pin_memory", "False", "--per_device_train_batch_size", "4"]
TRAINER = ["--length", "32", "--width", "32", "--learning_rate", "3e-3", "--gradient_accumulation_steps", "2"]
TRAINER += ["--max_grad_norm", "0.5", "--eval_strategy", "steps", "--eval_steps", "10", "--save_steps", "10"]


def losses(trainer, key="loss"):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def farthest(found, wanted):
    return max(abs(a - b) / b for a, b in zip(found, wanted, strict=True))


@pytest.mark.usefixtures("fresh")
def test_trainer_follows_plain_pytorch_and_resumes_to_the_bit(tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT.read_bytes()[:16384])

    def run(name, *flags):
        folder = ["--data", str(text), "--output_dir", str(tmp_path / name)]
        return trainer_script.main([*folder, *COMMON, *TRAINER, *flags])

    plain = run("plain", "--device", "cpu")
    whole = run("engine", "--device", "emulator")
    assert len(losses(whole)) == STEPS
    assert losses(whole)[-1] < 0.9 * losses(whole)[0]
    assert farthest(losses(whole), losses(plain)) < 0.01
    assert farthest(losses(whole, "grad_norm"), losses(plain, "grad_norm")) < 0.05
    assert farthest(losses(whole, "eval_loss"), losses(plain, "eval_loss")) < 0.01
    assert anew.statistics(whole.model).loss.used

    checkpoint = tmp_path / "engine/checkpoint-10"
    resumed = run("engine", "--device", "emulator", "--resume_from_checkpoint", str(checkpoint))
    assert anew.statistics(resumed.model).calibrations == 0
    assert losses(resumed) == losses(whole)

    for name, x in LlamaForCausalLM.from_pretrained(tmp_path / "engine").state_dict().items():
        torch.testing.assert_close(x, whole.model.state_dict()[name], rtol=0, atol=0)


@pytest.mark.usefixtures("fresh")
def test_sft_trainer_with_lora_follows_plain_pytorch(llama, tmp_path):
    pytest.importorskip("trl", reason="trl is not installed")
    from examples import sft

    base = tmp_path / "base"
    llama(vocab_size=257, max_position_embeddings=64, eos_token_id=256, use_cache=True).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    rows = [{"prompt": f"What is {i} + {j}? ", "completion": f"{i + j}."} for i in range(12) for j in range(12)]
    data = tmp_path / "sums.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))

    def run(name, device):
        flags = ["--model", str(base), "--data", str(data), "--device", device, "--output_dir", str(tmp_path / name)]
        flags += ["--bf16", "False", "--pad_to_multiple_of", "32", "--max_length", "64", "--learning_rate", "1e-2"]
        return sft.main([*flags, *COMMON])

    plain, engine = run("plain", "cpu"), run("engine", "emulator")
    assert losses(engine)[-1] < 0.97 * losses(engine)[0]
    assert farthest(losses(engine), losses(plain)) < 0.01
    assert anew.statistics(engine.model).dispatches >= STEPS * 2 * 2
    loaded = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), tmp_path / "engine")
    assert any(x.abs().max() > 0 for name, x in loaded.named_parameters() if "lora_B" in name)


def byte_tokenizer():
    """A tokenizer of single bytes and one end token."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>"]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
