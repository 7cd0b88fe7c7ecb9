"""`anew evaluate`: loss and perplexity of a pretrained model on text."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anew.cli.flags import add_device, add_model, place_of
from anew.errors import UserError

if TYPE_CHECKING:
    from anew.evaluation.loss import Row


def add_parser(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Add the verb and its flags, named as those of `mlx_lm.lora --test`."""
    parser = verbs.add_parser(
        "evaluate",
        help="loss and perplexity of a pretrained model on text",
        description="Print the loss, in nats a token, and the perplexity of a pretrained model, alone or with an "
        "adapter, on every token of a text but the first.",
    )
    parser.set_defaults(run=run)
    add_model(parser.add_argument_group("the model"))
    data = parser.add_argument_group("the data")
    data.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="PATH",
        help="a UTF-8 text file, or a folder of .txt and .md files, read in windows",
    )
    data.add_argument("--batch-size", type=int, default=4, metavar="N", help="rows in a batch (default: 4)")
    data.add_argument(
        "--max-seq-length",
        type=int,
        default=2048,
        metavar="N",
        help="tokens of a row or a window, or fewer if the model takes fewer (default: 2048)",
    )
    add_device(parser.add_argument_group("where to compute"))


def run(arguments: argparse.Namespace) -> int:
    """Print mlx_lm's line, and what computed it; return the exit code."""
    sizes = (("--batch-size", arguments.batch_size, 1), ("--max-seq-length", arguments.max_seq_length, 2))
    for flag, value, least in sizes:
        if value < least:
            raise UserError(f"{flag} is {value}; it has to be at least {least}")
    if not arguments.data.exists():
        raise UserError(f"there is no data at {arguments.data}")
    where = place_of(arguments)
    # Here, not above: these import torch and transformers, and `anew --help` should not wait for them.
    from anew.evaluation.loss import evaluate
    from anew.models import load
    from anew.train.device import describe_device, place, statistics

    model, tokenizer = load(
        arguments.model, adapter=arguments.adapter_path, trust_remote_code=arguments.trust_remote_code
    )
    length = _length(model, arguments.max_seq_length)
    rows = _rows(arguments, model, tokenizer, length)
    model = place(model, where)
    found = evaluate(model, rows, arguments.batch_size, length, _progress(len(rows)))
    print(f"Test loss {found.loss:.3f}, Test ppl {found.perplexity:.3f}.")
    print(f"{found.tokens:,} tokens of {found.rows:,} rows ({describe_device(statistics(model, where))})")
    return 0


def _progress(rows: int) -> Callable[[int], None]:
    """Return what shows on a terminal, in one line, how many rows are done; beside it, nothing is shown."""

    def show(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done:,} of {rows:,} rows", end="\r", file=sys.stderr, flush=True)

    return show


def _length(model: Any, wanted: int) -> int:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return wanted if limit is None else min(wanted, limit)


def _rows(arguments: argparse.Namespace, model: Any, tokenizer: Any, length: int) -> "list[Row]":
    """Return the windows of the text."""
    if arguments.data.suffix == ".jsonl":
        raise UserError(f"{arguments.data} holds rows of JSON; anew evaluate reads plain text")
    from anew.evaluation.text import windows
    from anew.train.data import read_documents

    return windows(read_documents(arguments.data), tokenizer, model.config.get_text_config().vocab_size, length)
