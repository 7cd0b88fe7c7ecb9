"""From what a user says to the tokens that a model reads: the tokenizer's chat template, or the text as it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from anew.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """What a user says.

    Attributes:
        text: the user's words.
        system: instructions before them; needs a chat template.
        prefill: how the answer is to begin; needs a chat template.
        template: whether to use the tokenizer's chat template, if it has one.
        template_settings: further variables of the template, such as ``enable_thinking``.
    """

    text: str
    system: str | None = None
    prefill: str | None = None
    template: bool = True
    template_settings: dict[str, Any] = field(default_factory=dict)


def encode(prompt: Prompt, tokenizer: Any) -> Tensor:
    """Return a prompt's token ids, int64 [1, tokens].

    Raises UserError for a template that refuses the prompt, for a system prompt without a template, and for no tokens.
    """
    if prompt.template and tokenizer.chat_template:
        ids = tokenizer(_filled(prompt, tokenizer), add_special_tokens=False)["input_ids"]
    else:
        _refuse_what_needs_a_template(prompt)
        ids = tokenizer(prompt.text)["input_ids"]
    if not ids:
        raise UserError("the prompt is empty: there is nothing to go on from")
    return torch.tensor([ids])


def _refuse_what_needs_a_template(prompt: Prompt) -> None:
    why = "does not come with this tokenizer" if prompt.template else "is to be ignored"
    for name, given in (("system prompt", prompt.system), ("beginning of the answer", prompt.prefill)):
        if given is not None:
            raise UserError(f"a {name} needs a chat template, which {why}")


def _filled(prompt: Prompt, tokenizer: Any) -> str:
    """Return the chat template's text for a prompt."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": prompt.system}] if prompt.system is not None else []
    messages.append({"role": "user", "content": prompt.text})
    begun = prompt.prefill is not None
    if begun:
        messages.append({"role": "assistant", "content": prompt.prefill})
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            continue_final_message=begun,
            add_generation_prompt=not begun,
            **prompt.template_settings,
        )
    except Exception as error:  # a template is a program: jinja2 has its errors, templates raise theirs through it
        raise UserError(f"the chat template refuses the prompt: {str(error).splitlines()[0]}") from error
    return str(text)
