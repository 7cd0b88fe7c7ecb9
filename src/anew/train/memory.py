"""Process memory: keeping what one step frees for the next, the peak, and what is there to take."""

import ctypes
import os
import platform
import resource
import sys
from pathlib import Path

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
NEVER_TRIM = -1


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory in the process; elsewhere do nothing. Return whether it was told.

    A training step allocates the same large tensors each time. By default glibc returns them to the kernel
    after every step, and the next one pays for faulting in every page again.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_TRIM_THRESHOLD, NEVER_TRIM)) and bool(mallopt(M_MMAP_MAX, 0))


def peak_memory() -> float:
    """Return the largest resident size that the process had so far, in GB (1e9 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def available_memory() -> float:
    """Return the bytes that a process can take without swapping; where the system does not say, all that there are."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
