"""Train a byte-level Llama with transformers.Trainer, on the engine by one line: ``anew.compile(model)``.

    python examples/trainer.py --use_cpu --max_steps 100 --learning_rate 1e-3 --logging_steps 10
    python examples/trainer.py --device cpu ...           # the same script in plain PyTorch
    torchrun --nproc_per_node 2 examples/trainer.py ...   # two processes, by DistributedDataParallel

The other flags are those of TrainingArguments. ``--use_cpu`` keeps the tensors where anew takes them up: on a Mac, the
Trainer would move the model to its GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import anew
from anew.callbacks import EngineState


@dataclass
class Options:
    """What this script adds to TrainingArguments."""

    device: str = field(default="auto", metadata={"help": "as for anew.compile; cpu: plain PyTorch"})
    data: Path = field(default=Path("data/austen.txt"), metadata={"help": "a text file, read as bytes"})
    length: int = field(default=128, metadata={"help": "bytes in a row"})
    width: int = field(default=128, metadata={"help": "hidden size of the model"})


def make_model(options: Options) -> LlamaForCausalLM:
    """A Llama of two layers over bytes, with the weights of seed 0."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=options.width,
        intermediate_size=options.width * 8 // 3,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=256,
        max_position_embeddings=options.length,
    )
    return LlamaForCausalLM(config)


def make_rows(options: Options) -> list[dict[str, torch.Tensor]]:
    """The text in rows of equal length: one shape, one pair of programs."""
    data = torch.frombuffer(bytearray(options.data.read_bytes()), dtype=torch.uint8).long()
    rows = data[: len(data) // options.length * options.length].view(-1, options.length)
    return [{"input_ids": row, "labels": row} for row in rows]


def main(argv: Sequence[str] | None = None) -> Trainer:
    """Train, evaluate and save; returns the trainer."""
    options, arguments = HfArgumentParser((Options, TrainingArguments)).parse_args_into_dataclasses(argv)
    model = make_model(options)
    callbacks = []
    if options.device != "cpu":
        anew.compile(model, device=options.device)
        callbacks.append(EngineState())  # operand scales go into the checkpoints
    rows = make_rows(options)
    trainer = Trainer(model, arguments, train_dataset=rows[32:], eval_dataset=rows[:32], callbacks=callbacks)
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    print(trainer.evaluate())
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
