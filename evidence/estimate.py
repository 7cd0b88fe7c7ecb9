"""Whole steps, projected: stories110m on the m4 against its bound; SmolLM2-135M, LoRA over constants and in full."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from anew.estimate.capture import Setting
from anew.estimate.step import estimate
from anew.train.presets import PRESETS
from evidence import record, replay

TOKENS, RANK = 256, 8
#: The shape of SmolLM2-135M, as its config.json on the hub has it.
SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def steps() -> dict[str, tuple[str, Setting]]:
    """What is projected: chip and setting by key."""
    stories, smol = AutoConfig.for_model(**PRESETS["stories110m"].model), AutoConfig.for_model(**SMOLLM2)
    found = {f"stories110m_batch_{n}": ("m4", Setting(stories, TOKENS, n)) for n in (1, 8)}
    for chip in ("m4", "m5"):
        found[f"smollm2_full_{chip}"] = chip, Setting(smol, TOKENS, 1)
        found[f"smollm2_lora_{chip}"] = chip, Setting(smol, TOKENS, 1, RANK, 16)
    return found


def main() -> None:
    """Project every step, write the record and the table of docs/estimate.md."""
    found = {key: estimate(setting, chip).as_dict() for key, (chip, setting) in steps().items()}
    record.write("estimate", {"steps": found, "over_replayed": over_replayed(found["stories110m_batch_1"])})
    record.write_table("estimate.md", "steps", [_row(key, figures) for key, figures in found.items()])


def over_replayed(step: dict[str, Any]) -> dict[str, float]:
    """How many times as long a step takes as published schedules projected at the same rates, AdamW added to those."""
    optimizer = step["parts_ms"]["host: optimizer"]
    replayed = {
        s.key: replay.project(s)["projected_ms"] for s in replay.SCHEDULES if s.key in ("static_m4", "dynamic_m4")
    }
    return {key: step["ms"] / (ms + optimizer) for key, ms in replayed.items()}


def _row(key: str, figures: dict[str, Any]) -> list[str]:
    def quote(name: str, form: str) -> str:
        return f'[{figures[name]:{form}}](evidence/estimate.json "steps.{key}.{name}")'

    what = f"LoRA, rank {figures['lora']}, base of {figures['base_bits']} bits" if figures["lora"] else "all weights"
    columns = (("ms", ".0f"), ("tokens_per_second", ".0f"), ("tokens_per_joule", ".0f"), ("over_bound", ".2f"))
    numbers = [quote(name, form) for name, form in columns]
    return [key.partition("_")[0], figures["chip"], what, str(figures["batch_size"]), *numbers]
