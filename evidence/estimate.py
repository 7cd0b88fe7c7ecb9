"""Whole steps, projected: stories110m on the m4 against its bound; SmolLM2-135M, LoRA over constants and in full."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from anew.estimate.capture import gains_of
from anew.estimate.counted import Setting
from anew.estimate.host import ADAMW, host_bandwidth
from anew.estimate.step import estimate
from anew.projection import Work, chip_names, from_memory, read_rates
from anew.projection.machine import read_machine
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
        found[f"smollm2_lora_inputs_{chip}"] = chip, Setting(smol, TOKENS, 1, RANK)
    return found


def main() -> None:
    """Project every step, write the record and the table of docs/estimate.md."""
    found = {key: estimate(setting, chip).as_dict() for key, (chip, setting) in steps().items()}
    optimizer, chosen = optimizer_on_engine(), {chip: choices(chip) for chip in CHOOSERS}
    batches = found["stories110m_batch_1"], found["stories110m_batch_8"]
    record.write(
        "estimate",
        {
            "steps": found,
            "over_replayed": over_replayed(batches[0]),
            "batch_8_over_1": batches[1]["tokens_per_second"] / batches[0]["tokens_per_second"],
            "optimizer_on_engine": optimizer,
            "choices": chosen,
        },
    )
    record.write_table("estimate.md", "choices", [_choice_row(chip, what) for chip, what in chosen.items()])
    record.write_table("estimate.md", "optimizer", [_optimizer_row(chip, ns) for chip, ns in optimizer.items()])
    record.write_table("estimate.md", "steps", [_row(key, figures) for key, figures in found.items()])


#: Chips whose choices are shown, and what these are recorded as.
CHOOSERS = "m1", "m4", "m5"
CHOICES = {
    "blocks": "causal attention's queries",
    "again": "values computed again",
    "exponentials": "exponentials saved",
}


def choices(chip: str) -> dict[str, float]:
    """Milliseconds that choices by a chip's prices take off a step of stories110m of eight rows, as they project it."""
    setting = Setting(AutoConfig.for_model(**PRESETS["stories110m"].model), TOKENS, 8)
    found = dict.fromkeys(CHOICES, 0.0)
    for gain, times in gains_of(setting, chip):
        (key,) = (key for key, words in CHOICES.items() if words in gain.change)
        found[key] += times * (gain.milliseconds or 0.0)
    return found


def _choice_row(chip: str, figures: dict[str, float]) -> list[str]:
    return [chip, *(f'[{ms:.1f}](evidence/estimate.json "choices.{chip}.{key}")' for key, ms in figures.items())]


#: Passes of AdamW on the engine over each number of a parameter in two fp16 terms: three for the first moment, four for
#: the second, its root, the step's quotient and two factors, and four to add a step to two terms without losing its low
#: part. Decay and corrections are in the factors.
ENGINE_PASSES = 15
#: Bytes that the engine streams for it: two terms, two moments and the gradient in, all but the gradient out; fp16.
ENGINE_BYTES = 18


def optimizer_on_engine() -> dict[str, dict[str, float]]:
    """Nanoseconds of AdamW's step for a parameter by chip: by the host, and by the engine in two-term fp16."""
    found = {}
    for chip in chip_names():
        rates, host = read_rates(chip), 1e9 * ADAMW / host_bandwidth(read_machine(chip))
        engine = 1e9 * rates.time(Work(elementwise=ENGINE_PASSES) + from_memory(ENGINE_BYTES))
        found[chip.replace("-", "_")] = {"host_ns": host, "engine_ns": engine, "engine_over_host": engine / host}
    return found


def over_replayed(step: dict[str, Any]) -> dict[str, float]:
    """How many times as long a step takes as published schedules projected at the same rates, AdamW added to those."""
    optimizer = step["parts_ms"]["host: optimizer"]
    replayed = {
        s.key: replay.project(s)["projected_ms"] for s in replay.SCHEDULES if s.key in ("static_m4", "dynamic_m4")
    }
    return {key: step["ms"] / (ms + optimizer) for key, ms in replayed.items()}


def _optimizer_row(chip: str, figures: dict[str, float]) -> list[str]:
    place = f"optimizer_on_engine.{chip}"
    quoted = (f'[{value:.2f}](evidence/estimate.json "{place}.{key}")' for key, value in figures.items())
    return [chip.replace("_", "-"), *quoted]


def _row(key: str, figures: dict[str, Any]) -> list[str]:
    def quote(name: str, form: str) -> str:
        return f'[{figures[name]:{form}}](evidence/estimate.json "steps.{key}.{name}")'

    base = f"base of {figures['base_bits']} bits" if figures["base_bits"] else "base as inputs"
    what = f"LoRA, rank {figures['lora']}, {base}" if figures["lora"] else "all weights"
    columns = (("ms", ".0f"), ("tokens_per_second", ".0f"), ("tokens_per_joule", ".0f"), ("over_bound", ".2f"))
    numbers = [quote(name, form) for name, form in columns]
    return [key.partition("_")[0], figures["chip"], what, str(figures["batch_size"]), *numbers]
