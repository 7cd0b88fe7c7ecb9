"""`anew train`: train a language model from scratch on text files."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anew.cli.flags import add_device
from anew.errors import UserError
from anew.train.config import TrainConfig, check, resolve
from anew.train.presets import PRESETS

if TYPE_CHECKING:
    from anew.train.checkpoint import Checkpoint

INTERRUPTED = 130


def add_parser(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Add the verb and its flags; a flag that is not given is left to the preset."""
    parser = verbs.add_parser(
        "train",
        help="train a language model from scratch on text files",
        description="Train a language model from scratch on text files. The output folder gets the model "
        "(model/), the report (report.html), the loss curve (loss.png), metrics.jsonl, run.json and the last "
        "checkpoints (checkpoint-STEP/); those of an earlier run there that finished are replaced. A run that was "
        "interrupted or killed goes on with --resume DIR, to the bit as if nothing had happened.",
    )
    parser.set_defaults(run=run)
    what = parser.add_argument_group("what to train, and on what")
    what.add_argument(
        "--preset",
        metavar="NAME",
        help=f"{', '.join(PRESETS)}, or a Hugging Face CONFIG.json (default: tiny)",
    )
    what.add_argument(
        "--init-from",
        type=Path,
        metavar="PATH",
        help="begin from these weights, in place of --preset: a Hugging Face folder or a model.bin of llama2.c",
    )
    what.add_argument(
        "--data",
        metavar="PATH",
        help="a UTF-8 text file, a folder of .txt and .md files, or a .bin of tokens (anew tokenize, llama2.c, llm.c)",
    )
    what.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="a tokenizer.json or a folder with one (default: train one on the data)",
    )
    what.add_argument("--out", type=Path, metavar="DIR", help="output folder (default: runs/NAME)")
    _add_settings(parser.add_argument_group("how to train (defaults come from the preset)"))
    _add_device(parser.add_argument_group("where to compute"))
    _add_saving(parser.add_argument_group("saving and going on"))
    _add_reporting(parser.add_argument_group("reporting"))
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
    add_device(group)
    group.add_argument(
        "--allow-swap",
        action="store_true",
        default=None,
        help="start even if the run is estimated to need more memory than is available",
    )


def _add_saving(group: Any) -> None:
    group.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="go on with the run in DIR, with its own settings, from its latest checkpoint; or from the checkpoint DIR",
    )
    group.add_argument(
        "--save-every",
        type=int,
        metavar="N",
        help="steps between checkpoints; 0: only at Ctrl-C and the end (default: 100)",
    )
    group.add_argument("--keep", type=int, metavar="N", help="checkpoints to keep (default: 2)")


def _add_reporting(group: Any) -> None:
    group.add_argument(
        "--report-to",
        metavar="NAMES",
        help="services to report to besides metrics.jsonl, with commas between: tensorboard, wandb, trackio and the "
        "others that transformers knows (default: none)",
    )
    group.add_argument("--project-name", metavar="NAME", help="what a service groups runs under")


def _choices(arguments: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(arguments).items() if key in TrainConfig.__dataclass_fields__}


def configure(arguments: argparse.Namespace) -> TrainConfig:
    """Return the settings of a new run that the command line asks for; raises UserError if they make no sense."""
    choices = _choices(arguments) | {"processes": _processes()}
    return resolve(arguments.preset, choices.pop("data"), choices)


def _processes() -> int:
    from anew.train.ranks import Ranks  # it loads torch, for which `anew --help` should not wait

    return Ranks.of_environment().count


def _resumed(arguments: argparse.Namespace) -> tuple[TrainConfig, "Checkpoint"]:
    from anew.train.resume import find, settings

    checkpoint = find(arguments.resume)
    name = arguments.preset and Path(arguments.preset).stem
    config = settings(checkpoint, {**_choices(arguments), "name": name}, TrainConfig)
    check(config)
    if config.processes != _processes():
        raise UserError(
            f"the run in {config.out} has {config.processes} processes, not {_processes()}: go on with torchrun "
            f"--nproc_per_node {config.processes} -m anew train --resume {arguments.resume}"
        )
    return config, checkpoint


def run(arguments: argparse.Namespace) -> int:
    """Train and return the exit code."""
    config, checkpoint = _resumed(arguments) if arguments.resume else (configure(arguments), None)
    arguments.out = config.out  # where a traceback goes if something unexpected happens
    # Here, not above: these import torch and transformers, and `anew --help` should not wait for them.
    from anew.train.checkpoint import LATEST
    from anew.train.display import NoDisplay, make_display
    from anew.train.ranks import Ranks
    from anew.train.run import run as train

    ranks = Ranks.of_environment()
    display = make_display(arguments.plain) if ranks.first else NoDisplay()
    try:
        with ranks.together():
            if train(config, display, ["anew", *sys.argv[1:]], checkpoint, ranks):
                return 0
    except KeyboardInterrupt:  # the second one, or one outside of training
        if not (config.out / LATEST).exists():
            raise
    print(f"anew: interrupted; go on with: anew train --resume {config.out}", file=sys.stderr)
    return INTERRUPTED
