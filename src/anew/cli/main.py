"""The command `anew`: parses the command line, runs a verb, turns errors into one sentence and an exit code."""

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from anew.cli import convert, doctor, estimate, evaluate, finetune, fuse, generate, report, tokenize, train
from anew.errors import reason_of

VERBS = (finetune, train, estimate, report, generate, evaluate, fuse, convert, tokenize, doctor)
FAILED = 1
MISUSED = 2
INTERRUPTED = 130
READER_LEFT = 141


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is, and exit with 2."""
        self.exit(MISUSED, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse what is not known here, with the nearest flag: a verb has other flags than the root."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            near = difflib.get_close_matches(flag, self._option_string_actions, n=1, cutoff=0.7)
            self.error(f"unrecognized arguments: {' '.join(unknown)}" + (f"; did you mean {near[0]}?" if near else ""))
        return found, unknown


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; each verb adds its own."""
    parser = Parser(
        prog="anew",
        description="Train PyTorch language models on the Apple Neural Engine, or on an emulated one.",
    )
    parser.add_argument("--version", action="version", version=f"anew {version('anew')}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in VERBS:
        verb.add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 failed, 2 misused, 130 interrupted, 141 output cut off.

    The last is for a reader of standard output that has left, as in `anew generate | head`: nothing is said then. No
    error shows a bare traceback. That of an unexpected one goes to a file in the output folder of the verb, or to
    standard error with ANEW_DEBUG=1.
    """
    arguments = build_parser().parse_args(argv)
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        return _reader_left()
    except Exception as error:
        known = reason_of(error)
        return _fail(f"error: {known or f'unexpected {_in_one_line(error)}; {_keep_traceback(arguments)}'}")


def _fail(sentence: str, code: int = FAILED) -> int:
    if os.environ.get("ANEW_DEBUG") == "1":
        traceback.print_exc()
    print(f"anew: {sentence}", file=sys.stderr)
    return code


def _reader_left() -> int:
    """Let what is still buffered go nowhere, so that Python has nothing to complain of when it flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return READER_LEFT


def _in_one_line(error: Exception) -> str:
    """Return the type of an error and the first line of what it says."""
    message = str(error).strip()
    return f"{type(error).__name__}: {message.splitlines()[0]}" if message else type(error).__name__


def _keep_traceback(arguments: argparse.Namespace) -> str:
    """Write the traceback at hand to the verb's output folder if there is one; say where to find it."""
    out: Path | None = getattr(arguments, "out", None)
    try:
        if out is not None and out.is_dir():
            path = out / "traceback.txt"
            path.write_text(traceback.format_exc(), encoding="utf-8")
            return f"the traceback is in {path}"
    except OSError:
        pass  # a full disk may be what went wrong in the first place
    return "set ANEW_DEBUG=1 to see the traceback"
