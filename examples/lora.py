"""LoRA with transformers.Trainer, on the engine by one line: ``anew.compile(model)``.

    python examples/lora.py --model MODEL --use_cpu --max_steps 20 --learning_rate 1e-3 --output_dir runs/lora

MODEL is a Hugging Face folder, such as runs/smollm2/model, which ``make finetune-demo`` leaves. The other flags are
those of TrainingArguments; ``--device cpu`` is the same in plain PyTorch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, Trainer, TrainingArguments

import anew
from anew.callbacks import EngineState


@dataclass
class Options:
    """What this script adds to TrainingArguments."""

    model: Path = field(metadata={"help": "a Hugging Face folder"})
    device: str = field(default="auto", metadata={"help": "as for anew.compile; cpu: plain PyTorch"})
    data: Path = field(default=Path("data/austen.txt"), metadata={"help": "a text file"})
    length: int = field(default=128, metadata={"help": "tokens in a row"})
    rank: int = field(default=8, metadata={"help": "of the adapters"})


def make_rows(options: Options) -> list[dict[str, torch.Tensor]]:
    """The text in rows of equal length: one shape, so one set of programs."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ids = torch.tensor(tokenizer(options.data.read_text(encoding="utf-8"))["input_ids"])
    rows = ids[: len(ids) // options.length * options.length].view(-1, options.length)
    return [{"input_ids": row, "labels": row} for row in rows]


def main(argv: Sequence[str] | None = None) -> Trainer:
    """Tune and save the adapter; returns the trainer."""
    options, arguments = HfArgumentParser((Options, TrainingArguments)).parse_args_into_dataclasses(argv)
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    torch.manual_seed(arguments.seed)
    model = get_peft_model(base, LoraConfig(r=options.rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.print_trainable_parameters()
    callbacks = []
    if options.device != "cpu":
        anew.compile(model, device=options.device)
        callbacks.append(EngineState())  # operand scales go into the checkpoints
    trainer = Trainer(model, arguments, train_dataset=make_rows(options), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
