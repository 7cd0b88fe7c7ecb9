"""The watched process: starts it, asks it, notices that it died or hangs, and kills it."""

from __future__ import annotations

import pickle
import signal
import socket
import subprocess
import sys
import weakref
from multiprocessing.connection import Connection
from typing import Any

#: Seconds that an answer may take. A program of many layers takes minutes to compile (ANEForge: 162 s for eight).
LIMITS = {"open": 300.0, "compile": 1200.0, "run": 300.0, "release": 60.0}


class WorkerLost(Exception):
    """The worker process died or did not answer; says how."""


class Process:
    """A worker process and the connection to it."""

    def __init__(self, limits: dict[str, float]) -> None:
        self.limits = limits
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "anew.device.worker.serve", str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        self._connection = Connection(ours.detach())
        self._end = weakref.finalize(self, _end, self._process, self._connection)
        self._connection.send(sys.path)

    @property
    def number(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, name: str, *arguments: Any) -> Any:
        """Let the worker do one thing; raises what it raised, or WorkerLost."""
        try:
            self._connection.send((name, arguments))
            if not self._connection.poll(self.limits[name]):
                raise WorkerLost(f"did not answer for {self.limits[name]:g} s")
            good, answer = self._connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise WorkerLost(self._ended()) from error
        except BaseException:  # Ctrl-C while it works: its answer must not be taken for that to the next request
            self.kill()
            raise
        if not good:
            raise answer
        return answer

    def _ended(self) -> str:
        self.kill()
        code = self._process.returncode
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def kill(self) -> None:
        """End the process, which may hang; does nothing when it has ended."""
        self._end()


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    connection.close()
    try:
        process.wait(1)  # one that died by itself keeps its own exit code
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
