"""``python -m evidence [NAME ...]``: run the full measurements, all or those named."""

from __future__ import annotations

import importlib
import sys
import time

MEASUREMENTS = ("silicon", "gradients", "arithmetic", "bare_loop", "exact_matmul", "step_time", "stories110m", "demo")


def main(names: list[str]) -> int:
    """Run each measurement's ``main`` in turn."""
    unknown = [n for n in names if n not in MEASUREMENTS]
    if unknown:
        print(f"unknown measurement '{unknown[0]}'; known: {', '.join(MEASUREMENTS)}", file=sys.stderr)
        return 2
    for name in names or MEASUREMENTS:
        start = time.monotonic()
        print(f"== {name}", flush=True)
        importlib.import_module(f"evidence.{name}").main()
        print(f"== {name}: {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
