"""`anew tokenize`: text to a file of token ids, for `anew train` and for llama2.c."""

import argparse
from pathlib import Path
from typing import Any

from anew.errors import UserError


def add_parser(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Add the verb and its flags."""
    parser = verbs.add_parser(
        "tokenize",
        help="write text as a file of token ids",
        description="Encode text once: the file holds 16-bit token ids as llama2.c keeps TinyStories, each text ended "
        "by the tokenizer's end of text. anew train --data FILE.bin --tokenizer PATH learns from it.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--data", type=Path, required=True, metavar="PATH", help="a text file, or a folder of them")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="PATH", help="a tokenizer.json or a folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.bin", help="written whole or not at all")


def run(arguments: argparse.Namespace) -> int:
    """Encode, write and say how much; return the exit code."""
    from anew.llama2c import write_tokens
    from anew.llama2c.tokens import SUFFIX
    from anew.train.data import read_documents
    from anew.train.tokenizer import encode, load_tokenizer

    if arguments.out.suffix != SUFFIX:
        raise UserError(f"--out {arguments.out}: a file of tokens ends in {SUFFIX}")
    if not arguments.out.parent.is_dir():
        raise UserError(f"there is no folder {arguments.out.parent} to write {arguments.out.name} to")
    tokenizer = load_tokenizer(arguments.tokenizer)
    ids = encode(tokenizer, read_documents(arguments.data), len(tokenizer))
    write_tokens(ids, arguments.out)
    print(f"{arguments.out}: {len(ids):,} tokens of {len(tokenizer)} pieces")
    return 0
