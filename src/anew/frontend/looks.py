"""What the host finds out about a program's results in a thread of its own, while the engine is at the next program."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from torch._dynamo.convert_frame import compile_lock


class Looks:
    """Looks at results that nothing waits for, and what is to be done once each has been taken.

    Attributes:
        beside: whether results are looked at later at all.
    """

    def __init__(self) -> None:
        self.beside = False
        self._thread: ThreadPoolExecutor | None = None
        self._pending: list[tuple[Future[None], Callable[[], None]]] = []

    def start(self, look: Callable[[], None], then: Callable[[], None]) -> None:
        """Look in the thread; whoever settles calls ``then``."""
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="anew-looks")
        self._pending.append((self._thread.submit(look), then))

    def settle(self) -> None:
        """Wait for the looks that were started, and do what follows from them; raises what went wrong."""
        pending, self._pending = self._pending, []
        for look, then in pending:
            look.result()
            with compile_lock:  # a program may have to run again
                then()
