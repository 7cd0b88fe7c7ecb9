"""The command-line reference, from the parsers themselves."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from anew.cli.main import Parser, build_parser


def verbs() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each verb."""
    (action,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {name: parser for name, parser in action.choices.items() if isinstance(parser, Parser)}


def flags(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Yield each flag or argument as it is written, and its help; that of ``--help`` left out."""
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        value = "" if action.nargs == 0 else f" {_value(action)}"
        names = ", ".join(action.option_strings)
        yield f"{names}{value}" if names else _value(action), (action.help or "").strip()


def _value(action: argparse.Action) -> str:
    if action.choices and not action.metavar:
        return "|".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())


def _cell(text: str) -> str:
    """Text that Markdown leaves alone in a table; what stands in backticks needs none of it."""
    return text.replace("|", "\\|").replace("{", "&#123;").replace("*", "\\*")


def page() -> str:
    """Return the page."""
    parts = ["# Command line\n", "`anew VERB --help` says the same. `ANEW_DEBUG=1` shows the traceback of an error.\n"]
    for name, parser in verbs().items():
        parts.append(f"## anew {name}\n\n{parser.description}\n\n| flag | what it does |\n|---|---|")
        parts += [f"| `{flag}` | {_cell(text)} |" for flag, text in flags(parser)]
        parts.append("")
    return "\n".join(parts)
