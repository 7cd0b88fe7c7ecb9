"""A step of fine-tuning SmolLM2-135M beside plain PyTorch and peft: seconds in turn, and peak memory apart.

``python -m evidence finetune_time`` after ``make finetune-demo``, which brings model and data.
"""

from __future__ import annotations

import itertools
import statistics
import time

from anew.train.memory import keep_freed_memory, peak_memory
from evidence import record
from evidence.finetune import anew_step, apart, plain_step

#: Steps that are timed, after as many that are not, which compile.
TIMED = 10


def times(steps: int) -> dict[str, float]:
    """Seconds of a step by turns, anew's and plain PyTorch's, on the same batches; the medians and their ratio.

    Both keep freed memory, as ``anew finetune`` does: without, PyTorch takes longer.
    """
    keep_freed_memory()
    sides = {"anew": anew_step(steps), "eager": plain_step(steps)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for at, (name, step) in itertools.product(range(steps), sides.items()):
        start = time.perf_counter()
        step(at)
        seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(found[steps // 2 :]) for name, found in seconds.items()}  # compiled by then
    return {**{f"{name}_seconds": x for name, x in median.items()}, "time_ratio": median["anew"] / median["eager"]}


def memory(side: str, steps: int) -> float:
    """Peak memory in GB of a few steps of one side, in this process, which keeps freed memory."""
    keep_freed_memory()
    step = {"anew": anew_step, "eager": plain_step}[side](steps)
    for at in range(steps):
        step(at)
    return peak_memory()


def main() -> None:
    """Measure both and write the record."""
    peaks = {side: apart(f"memory('{side}', 4)", "finetune_time") for side in ("anew", "eager")}
    figures = apart(f"times({2 * TIMED})", "finetune_time")
    figures |= {f"{side}_gb": peak for side, peak in peaks.items()}
    record.write("finetune_time", figures | {"memory_ratio": peaks["anew"] / peaks["eager"]})
