"""`anew report`: what happened in a run, or in several side by side, as one HTML file."""

import argparse
import webbrowser
from pathlib import Path
from typing import Any

from anew.errors import UserError


def add_parser(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Add the verb and its flags."""
    parser = verbs.add_parser(
        "report",
        help="show what happened in a run, or in several side by side, as one HTML file",
        description="Write the report of a run, or of several side by side: losses, rates, gradient norms, scales, "
        "where the time went, where each part of the model ran, samples, machine, versions and settings. One HTML file "
        "that needs no network. Every run leaves one as report.html in its folder.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folder of anew train or finetune")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to write it (default: report.html in the run's folder; of several runs, in the current one)",
    )
    parser.add_argument("--open", action="store_true", help="show it in the browser")


def run(arguments: argparse.Namespace) -> int:
    """Write the report and return the exit code."""
    from anew.report import REPORT, write_report

    alone = len(arguments.runs) == 1  # a comparison leaves each run its own report
    path = arguments.out or (arguments.runs[0] / REPORT if alone else Path(REPORT))
    try:
        write_report(arguments.runs, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    print(path)
    if arguments.open and not webbrowser.open(path.resolve().as_uri()):
        raise UserError(f"no browser was found to open {path} with")
    return 0
