"""Probes of the ports: whether each name reaches its own memory, and where a row starts."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from anew.device.base import Device
from anew.doctor.finding import Experiment, Finding, compared, numbers
from anew.mil import Builder


def port_order(device: Device) -> Iterator[Finding]:
    """Inputs and results whose order by name is not that of the text, of equal shapes: a mix-up shows in the values."""
    b = Builder()
    inputs = {name: torch.full((1, 8, 1, 32), value) for name, value in (("c", 1.0), ("a", 2.0), ("b", 4.0))}
    c, a, second = (b.input(name, (1, 8, 1, 32)) for name in inputs)
    results = [b.op("sub", "z", x=c, y=a), b.op("sub", "y", x=a, y=second), b.op("mul", "x", x=second, y=second)]
    found = {n: v.mean().item() for n, v in Experiment.of(b, results, inputs).run(device).items()}
    yield compared("ports/order", "x 16, y -2, z -1", ", ".join(f"{n} {found[n]:g}" for n in sorted(found)), **found)


def row_stride(device: Device) -> Iterator[Finding]:
    """Rows that do not fill a multiple of the row size, and one element of a row: padded or packed, it shows."""
    for width in (1, 17, 32, 48):
        b = Builder()
        x = numbers(width, 1, 4, 3, width)
        found = Experiment.of(b, [b.op("add", "y", x=b.input("x", x.shape), y=0.0)], {"x": x}).run(device)["y"]
        wrong = int((found != x).any(-1).sum())
        yield compared(f"ports/rows of {width}", "0 of 12 rows wrong", f"{wrong} of 12 rows wrong", wrong=wrong)
