"""The scripts in examples/ and two processes of ``anew train``, against plain PyTorch and one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import anew
from anew.cli.main import main as command_line
from evidence import record
from examples import sft, trainer

STEPS = 20
COMMON = ["--use_cpu", "--max_steps", str(STEPS), "--logging_steps", "1", "--report_to", "none"]
COMMON += ["--disable_tqdm", "True", "--dataloader_pin_memory", "False", "--per_device_train_batch_size", "4"]
TRAINER = ["--learning_rate", "1e-3", "--gradient_accumulation_steps", "2", "--max_grad_norm", "0.5"]
TRAINER += ["--eval_strategy", "steps", "--eval_steps", "10", "--save_steps", "10"]
SFT = ["--bf16", "False", "--pad_to_multiple_of", "32", "--max_length", "64", "--learning_rate", "1e-2"]
TRAIN = "--preset tiny --steps 20 --val-every 10 --save-every 0 --device emulator"


def losses(run: Any, key: str = "loss") -> list[float]:
    """A number of every report of a Trainer."""
    return [entry[key] for entry in run.state.log_history if key in entry]


def farthest(found: list[float], wanted: list[float]) -> float:
    """The largest relative difference between two curves at any step."""
    return max(abs(a - b) / b for a, b in zip(found, wanted, strict=True))


def compared(plain: Any, engine: Any) -> dict[str, Any]:
    """Two runs of a Trainer side by side."""
    found = {"steps": STEPS, "first_loss": losses(engine)[0], "last_loss": losses(engine)[-1]}
    return found | {"loss_deviation": farthest(losses(engine), losses(plain))}


def with_trainer(folder: Path, *flags: str) -> dict[str, Any]:
    """examples/trainer.py in plain PyTorch, on the emulated engine, and resumed there from the middle."""

    def run(name: str, *more: str) -> Any:
        return trainer.main(["--output_dir", str(folder / name), *COMMON, *TRAINER, *flags, *more])

    plain, engine = run("plain", "--device", "cpu"), run("engine", "--device", "emulator")
    middle = folder / "engine/checkpoint-10"
    resumed = run("engine", "--device", "emulator", "--resume_from_checkpoint", str(middle))
    differ = sum(a != b for a, b in zip(losses(resumed), losses(engine), strict=True))
    return compared(plain, engine) | {
        "eval_deviation": farthest(losses(engine, "eval_loss"), losses(plain, "eval_loss")),
        "loss_region": anew.statistics(engine.model).loss.used,
        "resumed_losses_that_differ": differ,
        "resumed_calibrations": anew.statistics(resumed.model).calibrations,
    }


def with_sft(folder: Path) -> dict[str, Any]:
    """examples/sft.py on sums, with a Llama of two layers over bytes."""
    save_base(folder / "base")
    rows = [{"prompt": f"What is {i} + {j}? ", "completion": f"{i + j}."} for i in range(12) for j in range(12)]
    data = folder / "sums.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def run(name: str, device: str) -> Any:
        files = ["--model", str(folder / "base"), "--data", str(data), "--output_dir", str(folder / name)]
        return sft.main([*files, "--device", device, *SFT, *COMMON])

    plain, engine = run("plain", "cpu"), run("engine", "emulator")
    return compared(plain, engine) | {"dispatches": anew.statistics(engine.model).dispatches}


def save_base(folder: Path) -> None:
    """A Llama with the weights of seed 0, and a tokenizer of single bytes."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=257, max_position_embeddings=64, eos_token_id=256)
    LlamaForCausalLM(config).save_pretrained(folder)
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>"]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>").save_pretrained(folder)


def with_processes(folder: Path) -> dict[str, Any]:
    """`anew train` in one process, and in two with half the batch each."""
    common = ["train", "--data", str(Path(record.ROOT) / "data/austen.txt"), *TRAIN.split()]
    if command_line([*common, "--batch-size", "8", "--out", str(folder / "one")]):
        raise SystemExit("the run of one process failed")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "anew"]
    launch += [*common, "--batch-size", "4", "--out", str(folder / "two")]
    subprocess.run(launch, check=True, env=os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"})
    one, two = (_curve(folder / name, "train_loss") for name in ("one", "two"))
    return {"steps": len(one), "last_loss": two[-1], "loss_deviation": farthest(two, one)}


def _curve(folder: Path, key: str) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [found[key] for found in map(json.loads, lines) if found[key] is not None]


def main() -> None:
    """Measure all three and write the record."""
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "trainer": with_trainer(Path(folder) / "trainer"),
            "sft": with_sft(Path(folder) / "sft"),
            "processes": with_processes(Path(folder) / "processes"),
        }
    record.write("ecosystem", found)
