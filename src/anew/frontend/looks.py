"""What the host finds out about a program's results in a thread of its own, while the engine is at the next program."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch._dynamo.convert_frame import compile_lock


class Looks:
    """Looks at results of a backward pass that nothing in it waits for, and what is to be done once each was taken.

    All of them are settled when the backward pass ends: afterwards anybody may write to what it read.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._pending: deque[tuple[Future[None], Callable[[], None]]] = deque()

    @property
    def possible(self) -> bool:
        """Whether the calling thread is in a backward pass."""
        return torch._C._current_graph_task_id() != -1

    def start(self, look: Callable[[], None], then: Callable[[], None]) -> None:
        """Look in the thread; whoever settles calls ``then``."""
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="anew-looks")
        self._pending.append((self._thread.submit(look), then))
        torch.autograd.Variable._execution_engine.queue_callback(self.settle)

    def settle(self) -> None:
        """Wait for the looks that were started, and do what follows from them; raises what went wrong."""
        with compile_lock, torch.no_grad():  # a program may have to run again
            while self._pending:
                look, then = self._pending[0]
                look.result()
                self._pending.popleft()
                then()
