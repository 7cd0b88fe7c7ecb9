"""Rows as token ids, with the tokens marked that the loss counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from anew.errors import UserError
from anew.finetune.rows import CHAT, TEXT, BadRow, Row, each

#: A chat template marks what the assistant says with this tag of transformers.
_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Example:
    """Token ids, and for each whether the loss counts it; the first is never counted, as nothing predicts it."""

    ids: list[int]
    counted: list[bool]

    def cut(self, length: int) -> Example:
        """Return the first `length` tokens."""
        return Example(self.ids[:length], self.counted[:length])


class Encoder:
    """Makes examples of rows.

    Args:
        tokenizer: of transformers.
        mask_prompt: count the completion, or the last message, alone.
        assistant_only: count the messages of the assistant alone.
    """

    def __init__(self, tokenizer: Any, *, mask_prompt: bool = False, assistant_only: bool = False) -> None:
        self.tokenizer = tokenizer
        self.mask_prompt = mask_prompt
        self.assistant_only = assistant_only

    def encode(self, rows: Iterable[Row]) -> list[Example]:
        """Return the example of each row; raises UserError that names every row which cannot be one."""
        return each(((row.place, row) for row in rows), lambda place, row: self._example(row))

    def _example(self, row: Row) -> Example:
        if row.form == TEXT:
            if self.mask_prompt or self.assistant_only:
                flag = "--mask-prompt" if self.mask_prompt else "--assistant-only-loss"
                raise BadRow(f"{flag} has no meaning for a row of 'text': leave it away, or give prompt and completion")
            ids, first = self._ended(self._ids(row.content["text"])), 0
        elif row.form == CHAT or not isinstance(row.content["prompt"], str) or self.tokenizer.chat_template:
            return self._of_messages(row)
        else:
            prompt, completion = row.content["prompt"], row.content["completion"]
            ids = self._ids(prompt)
            first = len(ids) if self.mask_prompt or self.assistant_only else 0
            ids = self._ended(ids + self._ids(completion, special=False))
        return _example(ids, [i >= first for i in range(len(ids))])

    def _of_messages(self, row: Row) -> Example:
        messages, last = _conversation(row)
        if not self.tokenizer.chat_template:
            raise BadRow("the model's tokenizer has no chat template, which messages need: give rows of 'text'")
        tools = row.content.get("tools")
        if self.assistant_only:
            return self._of_assistant(messages, tools)
        ids = self._render(messages, tools)
        first = 0
        if self.mask_prompt:
            asks = messages[last]["role"] == "assistant"
            first = len(self._prefix(messages[:last], tools, ids, asks))
        return _example(ids, [i >= first for i in range(len(ids))])

    def _of_assistant(self, messages: Sequence[dict[str, Any]], tools: Any) -> Example:
        """By the template's own tags if it has them, else message by message by what each adds to the text."""
        if not any(message["role"] == "assistant" for message in messages):
            raise BadRow("--assistant-only-loss: no message is the assistant's")
        if _GENERATION_TAG.search(self.tokenizer.chat_template):
            found = self._apply(messages, tools, return_dict=True, return_assistant_tokens_mask=True)
            return _example(list(found["input_ids"]), [bool(x) for x in found["assistant_masks"]])
        ids = self._render(messages, tools)
        counted = [False] * len(ids)
        for at, message in enumerate(messages):
            if message["role"] == "assistant":
                first = len(self._prefix(messages[:at], tools, ids, True))
                end = len(self._prefix(messages[: at + 1], tools, ids, False))
                counted[first:end] = [True] * (end - first)
        return _example(ids, counted)

    def _prefix(self, messages: Sequence[dict[str, Any]], tools: Any, whole: list[int], asks: bool) -> list[int]:
        """Render the first messages of a conversation, whose ids must begin the whole's."""
        ids = self._render(messages, tools, add_generation_prompt=asks) if messages else []
        if whole[: len(ids)] != ids:
            raise BadRow(
                "the chat template writes earlier messages another way once later ones follow, so that what the loss "
                "counts cannot be told: train without a mask, or with a template that has generation tags"
            )
        return ids

    def _render(self, messages: Sequence[dict[str, Any]], tools: Any, **options: Any) -> list[int]:
        return list(self._apply(messages, tools, return_dict=False, **options))

    def _apply(self, messages: Sequence[dict[str, Any]], tools: Any, **options: Any) -> Any:
        try:
            return self.tokenizer.apply_chat_template(list(messages), tools=tools, **options)
        except Exception as error:  # templates raise errors of their own and those of jinja2
            raise BadRow(f"the chat template refuses it: {str(error).splitlines()[0]}") from error

    def _ids(self, text: str, special: bool = True) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=special))

    def _ended(self, ids: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _conversation(row: Row) -> tuple[list[dict[str, Any]], int]:
    """The messages of a row, and the number of the first that --mask-prompt leaves in the loss."""
    if row.form == CHAT:
        messages = row.content["messages"]
        return messages, len(messages) - 1
    prompt, completion = row.content["prompt"], row.content["completion"]
    if isinstance(prompt, str):
        prompt, completion = [{"role": "user", "content": prompt}], [{"role": "assistant", "content": completion}]
    return [*prompt, *completion], len(prompt)


def _example(ids: list[int], counted: list[bool]) -> Example:
    return Example(ids, [False, *counted[1:]])


def fit(examples: Sequence[Example], length: int, what: str) -> tuple[list[Example], list[str]]:
    """Cut examples to a length and leave out those of which nothing is left to learn; say how many, in sentences.

    Raises UserError if none remains.
    """
    longest = max((len(example.ids) for example in examples), default=0)
    longer = sum(len(example.ids) > length for example in examples)
    kept = [cut for example in examples if any((cut := example.cut(length)).counted)]
    said = []
    if longer:
        said.append(
            f"[WARNING] {longer} of {len(examples)} rows of {what} are longer than {length} tokens, the longest has "
            f"{longest}: they are cut (--max-seq-length)"
        )
    if lost := len(examples) - len(kept):
        said.append(f"[WARNING] {lost} of {len(examples)} rows of {what} are left out: no token of them is in the loss")
    if examples and not kept:
        raise UserError(f"no row of {what} has a token for the loss: raise --max-seq-length, or change the mask")
    return kept, said


def stop_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return the ids at which generation ends, by the tokenizer and the model's generation configuration."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = found if isinstance(found, list) else [found]
    return {end for end in (*ends, tokenizer.eos_token_id) if end is not None}


def stops(examples: Sequence[Example], ends: set[int]) -> int:
    """Return how many examples have a stop token that the loss counts."""
    return sum(any(counted and i in ends for i, counted in zip(e.ids, e.counted, strict=True)) for e in examples)
