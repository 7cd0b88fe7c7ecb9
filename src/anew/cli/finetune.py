"""`anew finetune`: fine-tune a pretrained model, with the command line and the YAML file of mlx_lm.lora."""

import argparse
import sys
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from anew.errors import UserError
from anew.finetune.options import OPTIONS, FinetuneConfig

INTERRUPTED = 130


def add_parser(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Add the verb and a flag for each option; a flag that is not given is left to the YAML file and the defaults."""
    parser = verbs.add_parser(
        "finetune",
        help="fine-tune a pretrained model with LoRA, DoRA or in full",
        description="Fine-tune a pretrained model. Flags, YAML keys, data and log lines are those of mlx_lm.lora; the "
        "command line goes over the YAML file, and that over the defaults. The output folder gets adapters that peft "
        "and mlx_lm load, report.html, metrics.jsonl, run.json, loss.png and the last checkpoints (checkpoint-STEP/).",
    )
    parser.set_defaults(run=run)
    parser.add_argument("-c", "--config", type=Path, metavar="FILE", help="a YAML file with options")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="go on with the run in DIR, with its own settings, from its latest checkpoint; or from the checkpoint DIR",
    )
    types = get_type_hints(FinetuneConfig)
    for name, option in OPTIONS.items():
        if option.metadata["help"]:
            _add_flag(parser, name, types[name], option)


def _add_flag(parser: argparse.ArgumentParser, name: str, kind: Any, option: Any) -> None:
    flag, text = FinetuneConfig.flag(name), option.metadata["help"]
    if kind is bool:
        parser.add_argument(flag, action="store_true", default=None, help=text)
        return
    default = "" if option.default is None else f" (default: {option.default})"
    parser.add_argument(
        flag,
        type=get_args(kind)[0] if isinstance(kind, UnionType) else kind,
        metavar=option.metadata["metavar"],
        choices=option.metadata["choices"] or None,
        help=text + default,
    )


def _configure(arguments: argparse.Namespace) -> tuple[FinetuneConfig, Any]:
    """Return the settings, and the checkpoint to go on from if there is one."""
    from anew.finetune.config import check, resolve

    flags = {name: getattr(arguments, name) for name in OPTIONS if hasattr(arguments, name)}
    if not arguments.resume:
        return resolve(flags, arguments.config), None
    if arguments.config:
        raise UserError("--resume goes on with the run's own settings: leave --config away, or start a new run")
    from anew.train.resume import find, settings

    checkpoint = find(arguments.resume)
    config = settings(checkpoint, flags, FinetuneConfig)
    check(config)
    return config, checkpoint


def run(arguments: argparse.Namespace) -> int:
    """Fine-tune and return the exit code."""
    from anew.train.ranks import Ranks

    config, checkpoint = _configure(arguments)
    if Ranks.of_environment().count > 1:
        raise UserError("anew finetune trains in one process: leave torchrun away, or run trl.SFTTrainer under it")
    arguments.out = config.adapter_path  # where a traceback goes if something unexpected happens
    # Here, not above: these import torch and transformers, and `anew --help` should not wait for them.
    from anew.finetune.run import run as finetune
    from anew.train.checkpoint import LATEST
    from anew.train.display import make_display

    try:
        if finetune(config, make_display(config.plain, config.steps_per_report), ["anew", *sys.argv[1:]], checkpoint):
            return 0
    except KeyboardInterrupt:  # the second one, or one outside of training
        if not (config.adapter_path / LATEST).exists():
            raise
    print(f"anew: interrupted; go on with: anew finetune --resume {config.adapter_path}", file=sys.stderr)
    return INTERRUPTED
