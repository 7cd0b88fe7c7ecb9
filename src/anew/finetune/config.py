"""The settings of a run: command line over YAML over defaults, unknown names refused, every value checked."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from anew.chips import load_chip
from anew.errors import UserError
from anew.finetune.options import LORA_PARAMETERS, OPTIONS, FinetuneConfig
from anew.plan import BASE_BITS

#: Numbers such as 1e-5 are numbers; YAML 1.1 reads them as text (yaml.org/spec/1.2.2, 10.3.2 reads them as anew does).
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_TYPES = get_type_hints(FinetuneConfig)
_LORA_KEYS = (*LORA_PARAMETERS, "alpha", "keys", "rslora")


class _Loader(yaml.SafeLoader):
    """YAML as mlx_lm reads it."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^{_FLOAT.pattern}$"), list("-+0123456789."))
_Loader.yaml_implicit_resolvers = {  # integers first: they have the form of a float too
    first: sorted(resolvers, key=lambda tag: tag[0] != "tag:yaml.org,2002:int")
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def resolve(flags: Mapping[str, Any], file: Path | None = None) -> FinetuneConfig:
    """Build the settings of a run.

    Args:
        flags: fields of FinetuneConfig; None where no flag was given.
        file: a YAML file with the same names.

    Raises UserError with one sentence for a file that cannot be read, an unknown name, and a value that makes no sense.
    """
    chosen = read_yaml(file) if file is not None else {}
    chosen |= {key: value for key, value in flags.items() if value is not None}
    config = FinetuneConfig(**{key: _typed(key, value, file) for key, value in chosen.items()})
    check(config)
    return config


def read_yaml(file: Path) -> dict[str, Any]:
    """Return the options of a YAML file; raises UserError for one that is none, and for names that are no options."""
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the configuration {file}: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no options: it must be a YAML mapping, such as 'iters: 100'")
    found.pop("config", None)  # mlx_lm writes its own name for this file, which is null here
    check_names(found, OPTIONS, f"{file}: option")
    return {key: value for key, value in found.items() if value is not None}


def check_names(given: Iterable[Any], known: Iterable[str], what: str) -> None:
    """Raise UserError for a name that is not known, with the nearest that is."""
    names = list(known)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(names)}"
            raise UserError(f"{what} '{name}' is unknown: {hint}")


def _typed(key: str, value: Any, file: Path | None) -> Any:
    """Return a value in its option's type; raises UserError for one of another."""
    hint = _TYPES[key]
    members = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    kinds = [get_origin(kind) or kind for kind in members]
    for kind in kinds:
        if kind is Any or type(value) is kind:
            return value
        if kind is float and type(value) is int:
            return float(value)
        if kind is Path and isinstance(value, (str, Path)):
            return Path(value)
    words = {int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}
    raise UserError(f"{file or 'the command line'}: '{key}' must be {words.get(kinds[0], 'text')}, not {value!r}")


def check(config: FinetuneConfig) -> None:
    """Raise UserError, naming the flag, for a value that makes no sense."""
    for name in ("batch_size", "iters", "steps_per_report", "steps_per_eval", "grad_accumulation_steps", "keep"):
        if getattr(config, name) < 1:
            raise UserError(f"{config.flag(name)} must be at least 1, not {getattr(config, name)}")
    for name in ("val_batches", "test_batches", "num_layers"):
        if getattr(config, name) < 1 and getattr(config, name) != -1:
            raise UserError(f"{config.flag(name)} must be at least 1, or -1 for all, not {getattr(config, name)}")
    for name in ("max_grad_norm", "seed", "save_every", "recheck"):
        if not (math.isfinite(getattr(config, name)) and getattr(config, name) >= 0):
            raise UserError(f"{config.flag(name)} must be 0 or more, not {getattr(config, name)}")
    if config.seed >= 1 << 63:  # what PyTorch's generators take
        raise UserError(f"--seed must be below 2^63, not {config.seed}")
    if not (math.isfinite(config.learning_rate) and config.learning_rate > 0):
        raise UserError(f"--learning-rate must be more than 0, not {config.learning_rate}")
    if config.max_seq_length < 2:
        raise UserError(f"--max-seq-length must be at least 2, not {config.max_seq_length}")
    for name, found in OPTIONS.items():
        choices = found.metadata["choices"]
        if choices and getattr(config, name) not in choices:
            raise UserError(f"'{name}' must be one of {', '.join(choices)}, not {getattr(config, name)!r}")
    if config.base_bits not in BASE_BITS:
        known = ", ".join(map(str, BASE_BITS))
        raise UserError(f"--base-bits must be one of {known}, not {config.base_bits}")
    if config.mask_prompt and config.assistant_only_loss:
        raise UserError("--mask-prompt and --assistant-only-loss exclude each other: choose one")
    if not (config.train or config.test):
        raise UserError("there is nothing to do: give --train, --test or both")
    load_chip(config.chip)  # raises for an unknown one
    _check_lora(config.lora_parameters)


def _check_lora(parameters: Mapping[str, Any]) -> None:
    check_names(parameters, _LORA_KEYS, "lora_parameters:")
    rank = parameters.get("rank", LORA_PARAMETERS["rank"])
    if not isinstance(rank, int) or rank < 1:
        raise UserError(f"lora_parameters: 'rank' must be a whole number of at least 1, not {rank!r}")
    dropout = parameters.get("dropout", 0.0)
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise UserError(f"lora_parameters: 'dropout' must be from 0 to below 1, not {dropout!r}")
    if "scale" in parameters and "alpha" in parameters:
        raise UserError("lora_parameters: 'scale' and 'alpha' say the same thing (scale = alpha / rank): give one")
    for name in ("scale", "alpha"):
        value = parameters.get(name, 1.0)
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value == 0:
            raise UserError(f"lora_parameters: '{name}' must be a number other than 0, not {value!r}")
    keys = parameters.get("keys")
    if keys is not None and not (isinstance(keys, list) and keys and all(isinstance(key, str) for key in keys)):
        raise UserError("lora_parameters: 'keys' must be a list of module names, such as self_attn.q_proj")
