"""`anew fuse`: an adapter and its base as one plain Hugging Face folder."""

import argparse
from pathlib import Path
from typing import Any

from anew.cli.flags import add_model
from anew.errors import UserError

DTYPES = ("float32", "float16", "bfloat16")


def add_parser(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Add the verb and its flags, those of `mlx_lm.fuse` where they have a meaning here."""
    parser = verbs.add_parser(
        "fuse",
        help="write an adapter and its base as one plain model",
        description="Add an adapter to its base's weights and write a plain Hugging Face folder (safetensors, "
        "configuration, tokenizer), which transformers, mlx_lm and the converters of llama.cpp read. The folder "
        "appears whole or not at all.",
    )
    parser.set_defaults(run=run)
    add_model(parser, adapter_default=Path("adapters"))
    parser.add_argument(
        "--save-path",
        type=Path,
        default=Path("fused_model"),
        metavar="DIR",
        help="a folder that is not there yet, or empty (default: fused_model)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the weights (default: float32)")


def run(arguments: argparse.Namespace) -> int:
    """Fuse, write and say where; return the exit code."""
    path: Path = arguments.save_path
    _check_free(path)
    # Here, not above: these import torch and transformers, and `anew --help` should not wait for them.
    import torch

    from anew.adapters.fuse import fuse, to_dtype
    from anew.models import load
    from anew.models.quiet import quiet
    from anew.train.model import describe_model, save_model

    model, tokenizer = load(
        arguments.model, adapter=arguments.adapter_path, trust_remote_code=arguments.trust_remote_code
    )
    fused = to_dtype(fuse(model), getattr(torch, arguments.dtype))
    with quiet():
        save_model(fused, tokenizer, path)
    print(f"Fused {arguments.adapter_path} into {arguments.model}: {path} ({describe_model(fused)}, {arguments.dtype})")
    return 0


def _check_free(path: Path) -> None:
    """Refuse a path that something else has, before anything is read; make the folder that is to hold it."""
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} is there already: remove it or choose another --save-path")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}; choose another --save-path") from error
