"""``python -m evidence [NAME ...]``: run the full measurements, all or those named."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time

MEASUREMENTS = (
    "corpus",
    "silicon",
    "projection",
    "replay",
    "estimate",
    "chain",
    "functions",
    "gradients",
    "architectures",
    "arithmetic",
    "arithmetic_plots",
    "bare_loop",
    "parity",
    "exact_matmul",
    "step_time",
    "host_overhead",
    "stories110m",
    "pretrained",
    "kills",
    "soak",
    "runtimes",
    "faults",
    "memory",
    "live_view",
    "demo",
    "walk",
    "finetune",
    "finetune_time",
    "finetune_memory",
    "ecosystem",
    "baked",
    "quotes",
)


def main(names: list[str]) -> int:
    """Run each named measurement, or all; returns the exit code."""
    unknown = [n for n in names if n not in MEASUREMENTS]
    if unknown:
        print(f"unknown measurement '{unknown[0]}'; known: {', '.join(MEASUREMENTS)}", file=sys.stderr)
        return 2
    if len(names) == 1:
        importlib.import_module(f"evidence.{names[0]}").main()
        return 0
    return max(_apart(name) for name in names or MEASUREMENTS)


def _apart(name: str) -> int:
    """Run one measurement in a process of its own, so that none finds what another left behind."""
    start = time.monotonic()
    print(f"== {name}", flush=True)
    code = subprocess.run([sys.executable, "-m", "evidence", name], check=False).returncode
    print(f"== {name}: {time.monotonic() - start:.0f} s", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
