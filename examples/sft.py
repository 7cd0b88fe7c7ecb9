"""Fine-tune with trl.SFTTrainer and a LoRA adapter of peft, on the engine by one line: ``anew.compile(model)``.

    pip install trl
    python examples/sft.py --model MODEL --data DATA.jsonl --use_cpu --bf16 False --pad_to_multiple_of 64

MODEL is a Hugging Face folder with its tokenizer; a line of DATA.jsonl is ``{"prompt": ..., "completion": ...}`` or any
other form that trl takes. The other flags are those of SFTConfig: ``--bf16 False`` because anew keeps fp32 masters,
``--pad_to_multiple_of`` because each length of a batch has programs of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from trl import SFTConfig, SFTTrainer

import anew
from anew.callbacks import EngineState


@dataclass
class Options:
    """What this script adds to SFTConfig."""

    model: Path = field(metadata={"help": "a Hugging Face folder"})
    data: Path = field(metadata={"help": "a .jsonl file"})
    device: str = field(default="auto", metadata={"help": "as for anew.compile; cpu: plain PyTorch"})
    rank: int = field(default=8, metadata={"help": "of the adapters"})


def main(argv: Sequence[str] | None = None) -> SFTTrainer:
    """Fine-tune and save the adapter; returns the trainer."""
    options, arguments = HfArgumentParser((Options, SFTConfig)).parse_args_into_dataclasses(argv)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="float32")
    callbacks = []
    if options.device != "cpu":
        anew.compile(model, device=options.device)
        callbacks.append(EngineState())
    trainer = SFTTrainer(
        model,
        args=arguments,
        train_dataset=load_dataset("json", data_files=str(options.data), split="train"),
        processing_class=AutoTokenizer.from_pretrained(options.model),
        peft_config=LoraConfig(r=options.rank, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
