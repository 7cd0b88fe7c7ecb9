"""`anew` in processes of its own that can be killed, without importing PyTorch in each: they fork from one that has."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext


class Started:
    """A running `anew`, with what is used of subprocess.Popen. What it prints to standard output is dropped."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._said = tempfile.NamedTemporaryFile("r", suffix=".txt")  # noqa: SIM115 -- closed with the last reference
        self._process = _context().Process(target=_run, args=(list(words), dict(environment or {}), self._said.name))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """As of Popen."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As of Popen."""
        return self._process.exitcode

    def kill(self) -> None:
        """As of Popen."""
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; returns nothing and the errors."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"still running after {timeout} s: {self._said.read()}")
        return "", self._said.read()


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anew.cli.main", "anew.train.run"])
    return context


def _run(words: list[str], environment: dict[str, str], errors: str) -> None:
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(errors, os.O_WRONLY), 2)
    from anew.cli.main import main

    sys.exit(main(words))
