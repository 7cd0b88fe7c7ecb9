"""The settings of one run: a preset or a configuration file, the user's choices on top, all checked."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anew.chips import load_chip
from anew.device.machine import default_chip
from anew.errors import UserError
from anew.train.presets import PRESETS, Preset
from anew.train.settings import Settings

#: The preset of a run that names none.
DEFAULT = "tiny"


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Everything that decides a run's result, and how often it is saved; `model` is a Hugging Face configuration."""

    VERB = "train"
    FOLDER = "out"
    # Data is known by its tokens.
    FREE = ("data", "save_every", "keep", "allow_swap", "recheck", "worker", "report_to", "project_name")

    name: str
    model: dict[str, Any]
    data: Path
    tokenizer: Path | None
    init_from: Path | None
    out: Path
    seq_len: int
    batch_size: int
    grad_accum: int
    steps: int
    lr: float
    warmup: int
    weight_decay: float
    grad_clip: float
    val_every: int
    seed: int = 0
    device: str = "auto"
    chip: str = dataclasses.field(default_factory=default_chip)
    numerics: str = "fast"
    recheck: int = 0
    worker: bool = False
    save_every: int = 100
    keep: int = 2
    allow_swap: bool = False
    report_to: str | None = None
    project_name: str | None = None
    processes: int = 1

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step learns from, in all processes."""
        return self.batch_size * self.grad_accum * self.seq_len * self.processes

    @classmethod
    def flag(cls, field: str) -> str:
        """Return the flag of a setting."""
        return "--preset" if field == "name" else super().flag(field)


def resolve(preset: str | None, data: str | None, choices: Mapping[str, Any]) -> TrainConfig:
    """Build the settings of a run.

    `preset` is a preset's name or a path ending in .json; None is the one called tiny, or the model of `init_from`.
    `choices` holds fields of TrainConfig; a value of None means that the preset (or the field's own default) decides.
    Raises UserError with one sentence.
    """
    weights = choices.get("init_from")
    if weights is not None and preset is not None:
        raise UserError("--preset and --init-from exclude each other: the weights say which model it is")
    name, found = _find_preset(preset or DEFAULT) if weights is None else _preset_of(weights)
    if data is None:
        raise UserError("there is nothing to train on: give --data FILE or --data DIR (UTF-8 text)")
    fields = {key: getattr(found, key) for key in _PRESET_FIELDS}
    chosen = {key: value for key, value in choices.items() if value is not None}
    fields.update(chosen)
    if "warmup" not in chosen:  # a preset's warmup is for its own number of steps
        fields["warmup"] = min(found.warmup, int(fields["steps"]) // 10)
    fields.setdefault("out", Path("runs") / name)
    fields.setdefault("init_from", None)
    if "tokenizer" not in fields:
        fields["tokenizer"] = None if weights is None else _tokenizer_of(weights)
    config = TrainConfig(name=name, model=found.model, data=Path(data), **fields)
    check(config)
    return config


_PRESET_FIELDS = tuple(f.name for f in dataclasses.fields(Preset) if f.name != "model")


def _find_preset(preset: str) -> tuple[str, Preset]:
    if preset in PRESETS:
        return preset, PRESETS[preset]
    if not preset.endswith(".json"):
        raise UserError(f"there is no preset {preset!r}: choose {', '.join(PRESETS)} or a CONFIG.json file")
    path = Path(preset)
    return path.stem, _preset(_read_model_config(path))


def _preset(model: dict[str, Any]) -> Preset:
    longest = model.get("max_position_embeddings") or Preset.seq_len
    return Preset(model, seq_len=min(Preset.seq_len, longest))


def _preset_of(weights: Path) -> tuple[str, Preset]:
    from anew.train.initial import read_configuration  # it loads torch, for which `anew --help` should not wait

    return weights.stem, _preset(read_configuration(weights))


def _tokenizer_of(weights: Path) -> Path:
    from anew.train.initial import tokenizer_beside

    found = tokenizer_beside(weights)
    if found is None:
        raise UserError(f"{weights} comes without a tokenizer: give --tokenizer, the one it was trained with")
    return found


def _read_model_config(path: Path) -> dict[str, Any]:
    try:
        model = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(model, dict) or not isinstance(model.get("model_type"), str):
        raise UserError(f'{path} is not a model configuration: it needs a "model_type", such as "llama"')
    if not isinstance(model.get("vocab_size"), int):
        raise UserError(f'{path} needs a "vocab_size", the number of tokens that the model knows')
    return model


def check(config: TrainConfig) -> None:
    """Raise UserError, naming the flag, for a value that makes no sense."""
    for name in ("seq_len", "batch_size", "grad_accum", "steps", "val_every", "keep"):
        if getattr(config, name) < 1:
            raise UserError(f"{TrainConfig.flag(name)} must be at least 1, not {getattr(config, name)}")
    for name in ("warmup", "weight_decay", "grad_clip", "seed", "save_every", "recheck"):
        if not (math.isfinite(getattr(config, name)) and getattr(config, name) >= 0):
            raise UserError(f"{TrainConfig.flag(name)} must be 0 or more, not {getattr(config, name)}")
    if config.seed >= 1 << 63:  # what PyTorch's generators take
        raise UserError(f"--seed must be below 2^63, not {config.seed}")
    if not (math.isfinite(config.lr) and config.lr > 0):
        raise UserError(f"--lr must be more than 0, not {config.lr}")
    if config.warmup > config.steps:
        raise UserError(f"--warmup {config.warmup} is longer than the run of {config.steps} steps")
    load_chip(config.chip)  # raises for an unknown one
    longest = config.model.get("max_position_embeddings")
    if isinstance(longest, int) and config.seq_len > longest:
        raise UserError(f"--seq-len {config.seq_len} is longer than the {longest} positions of the model {config.name}")
