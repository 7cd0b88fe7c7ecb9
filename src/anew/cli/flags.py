"""Flags that several verbs share."""

import argparse
from pathlib import Path
from typing import Any


def add_model(group: Any, *, adapter_default: Path | None = None) -> None:
    """Add the pretrained model and its adapter, under mlx_lm's names."""
    group.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="a Hugging Face folder, a GGUF file or a folder with one, or a name on the hub",
    )
    group.add_argument(
        "--adapter-path",
        type=Path,
        metavar="DIR",
        default=adapter_default,
        help=f"an adapter that anew, peft or mlx_lm wrote (default: {adapter_default or 'none'})",
    )
    group.add_argument(
        "--trust-remote-code", action="store_true", help="run model code that comes with the model (default: refuse)"
    )


def add_device(group: Any) -> None:
    """Add where to compute; a flag that is not given is None."""
    group.add_argument(
        "--device",
        choices=("auto", "emulator", "cpu"),
        help="auto: the engine, or the emulator where there is none; cpu: plain PyTorch (default: auto)",
    )
    group.add_argument("--chip", metavar="NAME", help="the chip to compile for and to emulate (default: m4)")
    group.add_argument(
        "--numerics",
        choices=("exact", "fast"),
        help="exact: the engine's arithmetic bit for bit; fast: without its finest rounding (default: fast)",
    )


def place_of(arguments: argparse.Namespace) -> Any:
    """Return the :class:`anew.train.device.Place` that the flags of :func:`add_device` name."""
    from anew.train.device import Place

    given = {key: value for key in ("device", "chip", "numerics") if (value := getattr(arguments, key)) is not None}
    return Place(**given)
