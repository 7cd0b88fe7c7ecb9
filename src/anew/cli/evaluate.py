"""`anew evaluate`: loss and perplexity of a pretrained model on text or on rows of jsonl."""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anew.cli.flags import add_device, add_model, place_of
from anew.errors import UserError

if TYPE_CHECKING:
    from anew.finetune.batches import Batch


def add_parser(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Add the verb and its flags, those of `mlx_lm.lora --test` with their defaults."""
    parser = verbs.add_parser(
        "evaluate",
        help="loss and perplexity of a pretrained model on a data file",
        description="Print the loss, in nats a token, and the perplexity of a pretrained model, alone or with an "
        "adapter, on every token of a data file that counts.",
    )
    parser.set_defaults(run=run)
    add_model(parser.add_argument_group("the model"))
    data = parser.add_argument_group("the data")
    data.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="PATH",
        help="a .jsonl file or a folder with test.jsonl; or text, read in windows: a file, or a folder of .txt and .md",
    )
    data.add_argument("--batch-size", type=int, default=4, metavar="N", help="rows in a batch (default: 4)")
    data.add_argument(
        "--max-seq-length",
        type=int,
        default=2048,
        metavar="N",
        help="tokens of a row or a window, or fewer if the model takes fewer (default: 2048)",
    )
    data.add_argument("--mask-prompt", action="store_true", help="count the completion, or the last message, alone")
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
    from anew.evaluation import perplexity, read
    from anew.finetune.batches import Batches
    from anew.finetune.loop import evaluate
    from anew.models import load
    from anew.train.device import describe_device, place, statistics

    model, tokenizer = load(
        arguments.model, adapter=arguments.adapter_path, trust_remote_code=arguments.trust_remote_code
    )
    config: Any = model.config
    settings = config.get_text_config()
    length = min(arguments.max_seq_length, getattr(settings, "max_position_embeddings", None) or math.inf)
    examples, said = read(arguments.data, tokenizer, settings.vocab_size, length, arguments.mask_prompt)
    for line in said:
        print(line)
    model = place(model, where)
    batches = Batches(examples, arguments.batch_size, length)
    loss = evaluate(model, _shown(batches.spread(-1), len(batches)))
    if not math.isfinite(loss):
        raise UserError(f"the loss is {loss}: the model's weights, or its logits on this data, are not finite")
    print(f"Test loss {loss:.3f}, Test ppl {perplexity(loss):.3f}.")
    tokens = sum(sum(example.counted) for example in examples)
    print(f"{tokens:,} tokens of {len(examples):,} rows ({describe_device(statistics(model, where))})")
    return 0


def _shown(batches: "Iterator[Batch]", count: int) -> "Iterator[Batch]":
    """Give batches on, and show on a terminal, in one line, how many were asked for."""
    for number, batch in enumerate(batches, 1):
        if sys.stderr.isatty():
            print(f"batch {number:,} of {count:,}", end="\r", file=sys.stderr, flush=True)
        yield batch
