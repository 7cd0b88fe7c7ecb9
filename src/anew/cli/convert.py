"""`anew convert`: a model between Hugging Face folders, GGUF and llama2.c's files."""

import argparse
from pathlib import Path
from typing import Any

from anew.errors import UserError

SUFFIX = ".bin"


def add_parser(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Add the verb and its flags."""
    parser = verbs.add_parser(
        "convert",
        help="a model from or to llama2.c's model.bin, or from GGUF to a folder",
        description="Convert a model. FROM is a Hugging Face folder, such as the model/ of a run, a GGUF file or a "
        "model.bin of llama2.c; TO is a folder, or a file that ends in .bin, which llama2.c's run.c reads.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("source", metavar="FROM", help="a Hugging Face folder, a GGUF file or a model.bin")
    parser.add_argument("target", type=Path, metavar="TO", help="written whole or not at all")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="PATH", help="for a model.bin, which has none: a tokenizer.json or a folder"
    )
    parser.add_argument("--force", action="store_true", help="replace what is there")
    parser.add_argument("--version", type=int, choices=(0, 1), default=0, help="of the .bin file (default: 0, run.c's)")


def run(arguments: argparse.Namespace) -> int:
    """Convert and say what was written; return the exit code."""
    target: Path = arguments.target
    _check_replaceable(target, arguments.force)
    if not target.parent.is_dir():
        raise UserError(f"there is no folder {target.parent} to write {target.name} to")
    # Here, not above: these import torch and transformers, and `anew --help` should not wait for them.
    from anew.llama2c import write_model
    from anew.models.quiet import quiet
    from anew.train.model import describe_model

    model, tokenizer = _load(arguments.source, arguments.tokenizer)
    if target.suffix == SUFFIX:
        write_model(model, target, arguments.version)
    else:
        with quiet():
            _save_folder(model, tokenizer, target)
    print(f"{target}: {describe_model(model)}")
    return 0


def _check_replaceable(target: Path, force: bool) -> None:
    """Refuse to replace what was not asked for, and with --force what is no model of the same form."""
    if not target.exists():
        return
    if not force:
        raise UserError(f"{target} is there already: give --force to replace it, or choose another place")
    if target.suffix == SUFFIX and target.is_dir():
        raise UserError(f"{target} is a folder, and a .bin is a file: choose another place")
    if target.suffix != SUFFIX and not (target / "config.json").is_file():
        raise UserError(f"{target} is no folder with a model, so --force does not replace it: choose another place")


def _load(source: str, tokenizer: Path | None) -> tuple[Any, Any]:
    from anew.llama2c import read_model
    from anew.models import load
    from anew.train.tokenizer import load_tokenizer

    if source.endswith(SUFFIX):
        return read_model(Path(source)), load_tokenizer(tokenizer) if tokenizer else None
    if tokenizer is not None:
        raise UserError(f"{source} brings its own tokenizer: leave --tokenizer away")
    return load(source)


def _save_folder(model: Any, tokenizer: Any, target: Path) -> None:
    from anew.train.model import save_model

    if tokenizer is None:
        raise UserError("a folder holds a tokenizer, and a .bin has none: give --tokenizer PATH")
    save_model(model, tokenizer, target)
