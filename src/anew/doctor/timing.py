"""Measurements of speed: what a dispatch costs, how fast memory streams, how fast products go. Medians, in seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median

from anew.device.base import Device
from anew.doctor.finding import Experiment, Finding, numbers
from anew.doctor.operations import CONV
from anew.mil import Builder

REPEATS = 30
#: Elements of a stream, and the sizes of a product.
STREAMED, ROWS, WIDTH = 2048 * 2048, 512, 1024


def timing(device: Device) -> Iterator[Finding]:
    """Dispatch floor, streaming and products."""
    yield _measured(device, "dispatch", _add(32), lambda s: f"{1e6 * s:.0f} us")
    yield _measured(device, "streaming", _add(STREAMED), lambda s: f"{3 * 2 * STREAMED / s / 1e9:.1f} GB/s")
    yield _measured(device, "matmul of inputs", product(), _rate)
    yield _measured(device, "conv 1x1, baked", _conv(), _rate)


def _rate(seconds: float) -> str:
    return f"{2 * ROWS * WIDTH * WIDTH / seconds / 1e12:.2f} TFLOPS"


def _measured(device: Device, name: str, experiment: Experiment, say: Callable[[float], str]) -> Finding:
    with experiment.loaded(device) as (operation, _):
        operation.execute()
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            operation.execute()
            seconds.append(time.perf_counter() - start)
    raw = {"median_seconds": median(seconds), "least_seconds": min(seconds), "repeats": REPEATS}
    return Finding(f"timing/{name}", "", say(median(seconds)), "measured", raw)


def _add(count: int) -> Experiment:
    b = Builder()
    x = numbers(0, 1, max(1, count // 2048), 1, min(count, 2048))
    return Experiment.of(b, [b.op("add", "y", x=b.input("x", x.shape), y=b.input("w", x.shape))], {"x": x, "w": x})


def product() -> Experiment:
    """A matmul of two inputs, [512, 1024] x [1024, 1024]."""
    b = Builder()
    x, y = numbers(0, 1, 1, ROWS, WIDTH), numbers(1, 1, 1, WIDTH, WIDTH)
    result = b.op("matmul", "y", x=b.input("x", x.shape), y=b.input("w", y.shape), transpose_x=False, transpose_y=False)
    return Experiment.of(b, [result], {"x": x, "w": y})


def _conv() -> Experiment:
    b = Builder()
    x, w = numbers(0, 1, WIDTH, 1, ROWS), numbers(1, WIDTH, WIDTH, 1, 1)
    form = CONV | {"pad_type": "valid", "pad": [0] * 4}
    return Experiment.of(
        b, [b.op("conv", "y", x=b.input("x", x.shape), weight=b.array(w.numpy(), "w"), **form)], {"x": x}
    )
