"""Ctrl-C during training: the first asks to stop after the step, the second stops at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NOTICE = "Stopping after this step; press Ctrl-C again to stop at once."
STANDARD_ERROR = 2


def write_notice() -> None:
    """Say on standard error that the run will stop; not with print: the signal may have come in the middle of one."""
    os.write(STANDARD_ERROR, f"\n{NOTICE}\n".encode())


@contextmanager
def stop_on_interrupt(notify: Callable[[], None] = write_notice) -> Iterator[Callable[[], bool]]:
    """Give a function that says whether the user asked to stop; `notify` is called in the signal handler when they do.

    A step is never cut in half, so the weights stay those of a whole number of steps. Outside the main thread,
    where Python delivers no signals, the answer is always no.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        notify()

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
