"""Rows of whatever ``datasets`` loads, from the Hugging Face hub or from files, with its names and split syntax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anew.errors import UserError
from anew.finetune.config import check_names
from anew.finetune.options import FinetuneConfig
from anew.finetune.rows import Names, Row, each, parse
from anew.models.load import HUB_SECONDS

#: Keys of an entry of ``hf_dataset`` (mlx-lm 0.32, ``tuner/datasets.py``), and the splits it takes by default.
_FEATURES = ("prompt_feature", "completion_feature", "chat_feature", "text_feature")
_DEFAULT_SPLITS = {"train": "train[:80%]", "valid": "train[-10%:]"}
#: What most data sets of the hub call a split that mlx_lm has under another name.
_ALSO = {"valid": "validation"}
_KEYS = ("path", "config", "train_split", "valid_split", "test_split", *_FEATURES)


def read_hub(config: FinetuneConfig, names: Names, wanted: tuple[str, ...]) -> dict[str, list[Row]]:
    """Return the rows of each wanted split; several entries of ``hf_dataset`` follow each other.

    Raises UserError without the package ``datasets``, for bad entries, and for what the hub does not give.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"there is no folder {config.data}; to take a data set of that name from the Hugging Face hub, "
            "pip install 'anew[hub]'"
        ) from error
    if config.hf_dataset is None:
        splits = _load(datasets, config.data)
        given = {name: name if name in splits else _ALSO.get(name, name) for name in wanted}
        return {name: _rows(splits.get(of, ()), f"{config.data}[{of}]", names) for name, of in given.items()}
    entries = config.hf_dataset if isinstance(config.hf_dataset, list) else [config.hf_dataset]
    rows: dict[str, list[Row]] = {split: [] for split in wanted}
    for entry in entries:
        _check(entry)
        own = Names(**{key.removesuffix("_feature"): entry[key] for key in _FEATURES if key in entry})
        for split in wanted:
            if part := entry.get(f"{split}_split", _DEFAULT_SPLITS.get(split)):
                found = _load(datasets, entry["path"], split=part, **entry.get("config", {}))
                rows[split] += _rows(found, f"{entry['path']}[{part}]", own)
    return rows


def _check(entry: Any) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        raise UserError("'hf_dataset' must be a mapping with a 'path', or a list of such")
    check_names(entry, _KEYS, "hf_dataset:")


def _load(datasets: Any, path: str, **arguments: Any) -> Any:
    try:
        if not (Path(path).exists() or {"data_files", "data_dir"} & arguments.keys()):
            _ask_hub(path)
        return datasets.load_dataset(path, **arguments)
    except Exception as error:  # datasets, its hub client and its readers raise many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if Path(path).exists():
            raise UserError(f"datasets cannot load {path}: {reason}") from error
        raise UserError(
            f"there is no folder {path}, and the Hugging Face hub gives no such data set: {reason}"
        ) from error


def _ask_hub(name: str) -> None:
    """Raise if the hub does not give a data set that was never downloaded; `datasets` would try for half a minute."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    known = isinstance(try_to_load_from_cache(name, "README.md", repo_type="dataset"), str)
    if not (known or constants.HF_HUB_OFFLINE):
        HfApi().dataset_info(name, timeout=HUB_SECONDS)


def _rows(found: Any, name: str, names: Names) -> list[Row]:
    numbered = ((f"{name}:{number}", row) for number, row in enumerate(found, 1))
    return each(numbered, lambda place, row: parse(place, row, names))
