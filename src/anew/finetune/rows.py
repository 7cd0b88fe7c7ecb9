"""The rows of a data set, from jsonl files or the Hugging Face hub; every bad one is named by its place.

Forms, as mlx_lm and TRL have them: ``prompt`` and ``completion`` (texts, or lists of messages), ``messages``, both with
``tools`` beside them if there are any, and ``text``. Other keys of a row are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from anew.errors import UserError
from anew.finetune.options import FinetuneConfig

SPLITS = ("train", "valid", "test")
#: Bad rows that an error explains; more of them are counted.
EXPLAINED = 5
COMPLETION, CHAT, TEXT = "prompt/completion", "messages", "text"

Result = TypeVar("Result")


class BadRow(Exception):
    """What is wrong with one row."""


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        place: where it stands, such as ``data/train.jsonl:7``.
        form: COMPLETION, CHAT or TEXT.
        content: its values under the names of the form, and ``tools``.
    """

    place: str
    form: str
    content: dict[str, Any]


def read_rows(config: FinetuneConfig, wanted: Iterable[str]) -> dict[str, list[Row]]:
    """Return the rows of each wanted split, none for a split that is not there.

    Raises UserError for a folder without data, for bad rows, and for a data set that the hub does not give.
    """
    names = Names(config.prompt_feature, config.completion_feature, config.chat_feature, config.text_feature)
    folder = Path(config.data).expanduser()
    if config.hf_dataset is not None or not folder.exists():
        from anew.finetune.hub import read_hub

        return read_hub(config, names, tuple(wanted))
    if not folder.is_dir():
        raise UserError(f"--data {folder} is a file: give the folder with train.jsonl, valid.jsonl and test.jsonl")
    files = {split: folder / f"{split}.jsonl" for split in wanted}
    if not any(file.is_file() for file in files.values()):
        wanted_files = ", ".join(file.name for file in files.values())
        raise UserError(
            f"{folder} holds none of {wanted_files}: give a folder that does; one with other files, such as parquet, "
            "is the 'path' of hf_dataset in the YAML file"
        )
    return {split: read_file(file, names) if file.is_file() else [] for split, file in files.items()}


@dataclass(frozen=True)
class Names:
    """What the keys of a row are called."""

    prompt: str = "prompt"
    completion: str = "completion"
    chat: str = "messages"
    text: str = "text"


def read_file(file: Path, names: Names) -> list[Row]:
    """Return the rows of a jsonl file; raises UserError that names every bad one by its line."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    numbered = [(f"{file}:{i}", line) for i, line in enumerate(lines, 1) if line.strip()]
    return each(numbered, lambda place, line: parse(place, _from_json(line), names))


def each(rows: Iterable[tuple[str, Any]], make: Callable[[str, Any], Result]) -> list[Result]:
    """Return what is made of each place and row; raises UserError that names every row which is bad."""
    made, wrong = [], []
    for place, row in rows:
        try:
            made.append(make(place, row))
        except BadRow as error:
            wrong.append(f"{place}: {error}")
    if wrong:
        more = f"; and {len(wrong) - EXPLAINED} more bad rows" if len(wrong) > EXPLAINED else ""
        raise UserError("; ".join(wrong[:EXPLAINED]) + more)
    return made


def _from_json(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8 at byte {error.start + 1} of the line") from error
    except json.JSONDecodeError as error:
        raise BadRow(f"not valid JSON: {error.msg} at column {error.colno}") from error


def parse(place: str, row: Any, names: Names) -> Row:
    """Return a row in its form; raises BadRow that says what is wrong with it."""
    if not isinstance(row, Mapping):
        raise BadRow(f"a row must be a JSON object, not {_kind(row)}")
    tools = _tools(row)
    if names.prompt in row and names.completion in row:
        pair = {"prompt": row[names.prompt], "completion": row[names.completion]}
        return Row(place, COMPLETION, {**_completion(pair), **tools})
    if names.chat in row:
        return Row(place, CHAT, {"messages": _messages(row[names.chat], names.chat), **tools})
    if names.text in row:
        return Row(place, TEXT, {"text": _text(row[names.text], names.text)})
    known = f"'{names.prompt}' and '{names.completion}', '{names.chat}', or '{names.text}'"
    raise BadRow(f"its keys are {', '.join(map(repr, row)) or 'none'}; a row needs {known}")


def _completion(pair: Mapping[str, Any]) -> dict[str, Any]:
    """Two texts, or two lists of messages."""
    if any(isinstance(value, list) for value in pair.values()):
        return {key: _messages(value, key) for key, value in pair.items()}
    return {key: _text(value, key) for key, value in pair.items()}


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"'{key}' must be text, not {_kind(value)}")
    if not value:
        raise BadRow(f"'{key}' is empty")
    return value


def _messages(value: Any, key: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise BadRow(f"'{key}' must be a list of messages, not {_kind(value)}")
    if not value:
        raise BadRow(f"'{key}' is empty")
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise BadRow(f"message {number} of '{key}' needs a 'role', such as 'user'")
        content = message.get("content")
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise BadRow(f"message {number} of '{key}' needs a 'content' that is text, not {_kind(content)}")
    return [dict(message) for message in value]


def _tools(row: Mapping[str, Any]) -> dict[str, Any]:
    tools = row.get("tools")
    if tools is None:
        return {}
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRow(f"'tools' must be a list of JSON objects, not {_kind(tools)}")
    return {"tools": tools}


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}.get(
        type(value), type(value).__name__
    )
