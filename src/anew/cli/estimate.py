"""`anew estimate`: what a training step of a model costs on a chip, projected."""

import argparse
import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anew.errors import UserError
from anew.projection import chip_names, scaled_names


def add_parser(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Add the verb and its flags."""
    parser = verbs.add_parser(
        "estimate",
        help="project time, energy and memory of a training step on a chip",
        description="Project what one training step costs on a chip: time by where it goes, tokens/s, TFLOPS, energy, "
        "memory, the bound. Programs are compiled for the chip and counted, nothing is run and no weights are loaded.",
    )
    parser.set_defaults(run=run)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--preset", metavar="NAME", help="a model of anew train, such as stories110m")
    model.add_argument(
        "--model", metavar="MODEL", help="a config.json, a folder with one, or a name on the hub; weights are not read"
    )
    parser.add_argument(
        "--chip",
        default="m4",
        metavar="NAME",
        help=f"{', '.join(chip_names())}; scaled from these: {', '.join(scaled_names())} (default: m4)",
    )
    parser.add_argument("--seq-len", type=int, default=256, metavar="N", help="tokens of a row (default: 256)")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="rows of a step (default: 1)")
    parser.add_argument(
        "--lora", type=int, default=0, metavar="RANK", help="train adapters of this rank; 0: all weights"
    )
    parser.add_argument(
        "--base-bits",
        type=int,
        default=0,
        choices=(0, 8, 16),
        help="with --lora, hold the base in the programs as constants of so many bits; 0: as inputs (default: 0)",
    )
    parser.add_argument("--compare", action="store_true", help="put published systems, an A100 and an H100 beside it")
    parser.add_argument("--roofline", type=Path, metavar="FILE", help="draw the roofline into a PNG file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(arguments: argparse.Namespace) -> int:
    """Print the estimate and return the exit code."""
    for flag in ("seq_len", "batch_size"):
        if getattr(arguments, flag) < (2 if flag == "seq_len" else 1):
            raise UserError(f"--{flag.replace('_', '-')} is {getattr(arguments, flag)}; it has to be larger")
    if arguments.lora < 0:
        raise UserError(f"--lora {arguments.lora}: a rank is at least 1")
    if arguments.base_bits and not arguments.lora:
        raise UserError("--base-bits is for a frozen base: give --lora RANK as well")
    with _uncollected():
        return _show(arguments)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python's collector off, which would look again and again at what importing makes and find it in use."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def _frozen() -> Iterator[None]:
    """Keep what is there by now from Dynamo, which collects by itself after each capture."""
    ours = not gc.get_freeze_count()
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:  # what a caller froze stays frozen
            gc.unfreeze()


def _show(arguments: argparse.Namespace) -> int:
    # Here, not above: these import torch and transformers, and `anew --help` should not wait for them.
    from anew.estimate import compare
    from anew.estimate.configuration import read
    from anew.estimate.counted import Setting
    from anew.estimate.step import estimate
    from anew.models.quiet import quiet

    name, config = read(arguments.preset, arguments.model)
    setting = Setting(config, arguments.seq_len, arguments.batch_size, arguments.lora, arguments.base_bits)
    with quiet(), _frozen():
        found = estimate(setting, arguments.chip)
    if arguments.json:
        data = {"model": name, **found.as_dict()} | ({"compare": compare.as_dict(found)} if arguments.compare else {})
        print(json.dumps(data, indent=1))
    else:
        from rich.console import Console

        from anew.estimate.table import show, show_comparison

        console = Console()
        show(found, name, console)
        if arguments.compare:
            show_comparison(found, console)
    if arguments.roofline:
        from anew.estimate.roofline import draw

        draw(found, name, arguments.roofline)
    return 0
