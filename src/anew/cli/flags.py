"""Flags that several verbs share."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from anew.device.routes import ROUTES


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
        choices=("auto", *ROUTES, "emulator", "cpu"),
        help="auto: the first route to the engine that works here, or the emulator, and says why; "
        f"{'; '.join(f'{route.name}: {route.what}' for route in ROUTES.values())}; cpu: plain PyTorch (default: auto)",
    )
    group.add_argument(
        "--chip", metavar="NAME", help="the chip to compile for and to emulate (default: this Mac's, or m4)"
    )
    group.add_argument(
        "--numerics",
        choices=("exact", "fast"),
        help="exact: the engine's arithmetic bit for bit; fast: without its finest rounding (default: fast)",
    )
    group.add_argument(
        "--recheck",
        type=int,
        metavar="N",
        help="on the engine, do every Nth run of a program again on the emulator and stop if they differ; 0: none",
    )
    group.add_argument(
        "--worker",
        action="store_true",
        default=None,
        help="let a process of its own drive the device: if it aborts or hangs, it is replaced and the call repeated",
    )


def place_of(arguments: argparse.Namespace) -> Any:
    """Return the :class:`anew.train.device.Place` that the flags of :func:`add_device` name."""
    from anew.train.device import Place

    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Place)}
    return Place(**{name: value for name, value in given.items() if value is not None})
