"""The configuration of the model to estimate: of a preset, a file, a folder or the hub. No weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anew.errors import UserError
from anew.train.presets import PRESETS


def read(preset: str | None, model: str | None) -> tuple[str, Any]:
    """Return a name and a configuration of transformers; raises UserError for what is not there or not known."""
    from transformers import AutoConfig

    if preset is not None:
        if preset not in PRESETS:
            raise UserError(f"there is no preset '{preset}'; there are {', '.join(PRESETS)}")
        return preset, AutoConfig.for_model(**PRESETS[preset].model)
    assert model is not None  # the parser asks for one of both
    path = Path(model).expanduser()
    file = path / "config.json" if path.is_dir() else path
    try:
        if file.is_file():
            settings = json.loads(file.read_text(encoding="utf-8"))
            config = AutoConfig.for_model(**settings)
        else:
            config = AutoConfig.from_pretrained(model)
    except Exception as error:  # transformers and its hub client raise many types
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"cannot read the configuration of {model}: {reason[0]}") from error
    return path.name if path.is_dir() else model, getattr(config, "text_config", config)
