"""run.json: what was run, on what, and what came out."""

import dataclasses
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from anew.device.power import power

#: The file's name in the run's folder.
RUN = "run.json"


def versions() -> dict[str, str]:
    """Return the versions that decide a result."""
    packages = {name: version(name) for name in ("anew", "torch", "transformers", "tokenizers")}
    return {**packages, "python": platform.python_version()}


def machine() -> dict[str, Any]:
    """Return what kind of machine this is, and on a Mac what holds it back; nothing that names it."""
    held_back = power()
    return {
        "platform": platform.platform(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        **(dataclasses.asdict(held_back) if held_back else {}),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is whole or not there."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
