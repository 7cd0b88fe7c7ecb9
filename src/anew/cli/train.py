"""`anew train`: train a language model from scratch on text files."""

import argparse
import sys
from pathlib import Path
from typing import Any

from anew.train.config import TrainConfig, resolve
from anew.train.presets import PRESETS

INTERRUPTED = 130


def add_parser(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Add the verb and its flags; a flag that is not given is left to the preset."""
    parser = verbs.add_parser(
        "train",
        help="train a language model from scratch on text files",
        description="Train a language model from scratch on text files. The output folder gets the model "
        "(model/), the loss curve (loss.png), metrics.jsonl and run.json; those of an earlier run there are "
        "replaced.",
    )
    parser.set_defaults(run=run)
    what = parser.add_argument_group("what to train, and on what")
    what.add_argument(
        "--preset",
        default="tiny",
        metavar="NAME",
        help=f"{', '.join(PRESETS)}, or a Hugging Face CONFIG.json (default: tiny)",
    )
    what.add_argument("--data", metavar="PATH", help="a UTF-8 text file, or a folder of .txt and .md files")
    what.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="a tokenizer.json or a folder with one (default: train one on the data)",
    )
    what.add_argument("--out", type=Path, metavar="DIR", help="output folder (default: runs/NAME)")
    _add_settings(parser.add_argument_group("how to train (defaults come from the preset)"))
    _add_device(parser.add_argument_group("where to compute"))
    parser.add_argument("--plain", action="store_true", help="print log lines on a terminal too")


def _add_settings(group: Any) -> None:
    group.add_argument("--seq-len", type=int, metavar="N", help="tokens in a row of a batch")
    group.add_argument("--batch-size", type=int, metavar="N", help="rows in a batch")
    group.add_argument("--grad-accum", type=int, metavar="N", help="batches for one optimizer step")
    group.add_argument("--steps", type=int, metavar="N", help="optimizer steps")
    group.add_argument("--lr", type=float, metavar="X", help="highest learning rate")
    group.add_argument("--warmup", type=int, metavar="N", help="steps until the highest learning rate")
    group.add_argument("--weight-decay", type=float, metavar="X", help="AdamW's weight decay, on matrices")
    group.add_argument("--grad-clip", type=float, metavar="X", help="highest gradient norm; 0 clips nothing")
    group.add_argument("--val-every", type=int, metavar="N", help="steps between validations")
    group.add_argument("--seed", type=int, metavar="N", help="of weights, order and samples (default: 0)")


def _add_device(group: Any) -> None:
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


def configure(arguments: argparse.Namespace) -> TrainConfig:
    """Return the settings that the command line asks for; raises UserError if they make no sense."""
    given = vars(arguments)
    choices = {key: value for key, value in given.items() if key in TrainConfig.__dataclass_fields__}
    return resolve(arguments.preset, choices.pop("data"), choices)


def run(arguments: argparse.Namespace) -> int:
    """Train and return the exit code."""
    config = configure(arguments)
    arguments.out = config.out  # where a traceback goes if something unexpected happens
    # Here, not above: these import torch and transformers, and `anew --help` should not wait for them.
    from anew.train.display import make_display
    from anew.train.run import run as train

    if train(config, make_display(arguments.plain), ["anew", *sys.argv[1:]]):
        return 0
    print("anew: interrupted; the model as trained so far is saved", file=sys.stderr)
    return INTERRUPTED
