"""Kernels on all cores: numba's OpenMP threads, which on Linux are torch's own, awake between two of its operations.

A thread of another pool has to be woken for every pass, on a core where a thread of torch waits spinning for the next
operation: a pass over a million numbers takes less time than that. Where numba has no OpenMP (no ``libgomp`` on the
system), kernels run on one core.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import torch

#: Elements of a kernel's first array below which one core is as fast.
GRAIN = 1 << 14
COMPILED = {"nogil": True, "cache": True, "error_model": "numpy"}

_team = threading.local()
"""The number of threads that numba was last told to use on each calling thread: telling it takes a while."""


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """A numba kernel whose outer loop is ``numba.prange``, on as many threads as torch uses, up to numba's own number.

    It runs on the calling thread alone if its first argument, an array, has fewer than `GRAIN` elements, or torch has
    one thread: so in the workers of a data loader, where no OpenMP works after the fork.
    """
    alone = numba.njit(**COMPILED)(function)
    together = numba.njit(parallel=True, **COMPILED)(_twin(function))

    @functools.wraps(function)
    def run(first: Any, *others: Any) -> Any:
        if first.size < GRAIN:
            return alone(first, *others)
        threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
        if threads == 1 or not _openmp():
            return alone(first, *others)
        if getattr(_team, "threads", None) != threads:
            numba.set_num_threads(threads)
            _team.threads = threads
        return together(first, *others)

    return run


def _twin(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function under another name: numba's cache tells functions apart by name, not by the options."""
    twin = types.FunctionType(function.__code__, function.__globals__, f"{function.__name__}_together")
    twin.__qualname__, twin.__module__ = twin.__name__, function.__module__
    return twin


@functools.cache
def _openmp() -> bool:
    """Whether numba can start OpenMP threads here; its other pool takes no calls from several threads at once."""
    try:
        return importlib.import_module("numba.np.ufunc.omppool") is not None
    except ImportError:
        return False


@functools.lru_cache(maxsize=2)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="anew-emulator")


if hasattr(os, "register_at_fork"):  # a forked child inherits the executor but not its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def run_tasks(task: Callable[[int, int], Any], count: int, grain: int = 1) -> list[Any]:
    """Return `task(start, stop)` for ranges that cover `range(count)`, run on as many threads as torch uses.

    Ranges hold at least `grain` items. The calling thread takes the first one. `task` must release the GIL to
    gain anything.
    """
    pieces = min(count // grain, torch.get_num_threads())
    if pieces <= 1:
        return [task(0, count)]
    bounds = [count * i // pieces for i in range(pieces + 1)]
    others = [_pool(pieces).submit(task, *span) for span in itertools.pairwise(bounds[1:])]
    return [task(bounds[0], bounds[1]), *(other.result() for other in others)]
