"""What the loss will see, shown before training: the first example with the part that it does not count."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.text import Text

from anew.finetune.examples import Example, stops


def preview(example: Example, tokenizer: Any) -> Text:
    """Return an example's text; what the loss does not count is dim and stands in ⟦ ⟧."""
    shown = Text("First example; the loss does not count what stands in ⟦ ⟧:\n")
    for counted, part in groupby(zip(example.counted, example.ids, strict=True), key=lambda pair: pair[0]):
        text = tokenizer.decode([i for _, i in part])
        shown.append(text if counted else f"⟦{text}⟧", style="" if counted else "dim")
    return shown


def stop_warning(examples: Sequence[Example], ends: set[int], tokenizer: Any) -> str | None:
    """Return a warning if some examples, or all, do not teach where an answer ends; None if all do."""
    taught = stops(examples, ends)
    if taught == len(examples):
        return None
    names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(ends))) or "none is known"
    lacking = "no row has" if not taught else f"{len(examples) - taught} of {len(examples)} rows do not have"
    return f"[WARNING] {lacking} a stop token ({names}) in the loss: the model will not learn there to stop"
