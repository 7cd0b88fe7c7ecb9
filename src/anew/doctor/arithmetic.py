"""Probes of the fixed-point arithmetic: what operand scales rest on, and what becomes of what is too large."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from anew.device.base import Device
from anew.doctor.finding import Experiment, Finding, numbers, reference_engine
from anew.mil import Builder


def arithmetic(device: Device) -> Iterator[Finding]:
    """Programs whose results the emulator predicts to the bit."""
    for name, experiment in _experiments().items():
        wanted = experiment.run(reference_engine(device))["y"]
        found = experiment.run(device)["y"]
        different = int((~((found == wanted) | (found.isnan() & wanted.isnan()))).sum())
        raw = {"different": different, "found": _first(found), "emulated": _first(wanted)}
        text = "equal to the bit" if not different else f"{different} of {found.numel()} differ, first {raw['found']}"
        yield Finding(f"arithmetic/{name}", "equal to the bit", text, "differs" if different else "agrees", raw)


def _first(x: torch.Tensor) -> list[str]:
    return [f"{value:g}" for value in x.flatten()[:4].tolist()]


def _experiments() -> dict[str, Experiment]:
    found = {
        f"products of depth {depth}": _matmul(numbers(0, 1, 1, 64, depth), numbers(1, 1, 1, depth, 64))
        for depth in (256, 2048)
    }
    small = numbers(2, 1, 1, 64, 256, scale=2**-8)
    found["products of small operands"] = _matmul(small, small.mT.contiguous())
    large = torch.full((1, 1, 32, 512), 16.0, dtype=torch.float64)
    found["a sum beyond fp16"] = _matmul(large, large.mT.contiguous())
    found["infinity times a number"] = _elementwise([4.0, 0.5])
    found["a slice of large values"] = _slice()
    return found


def _matmul(x: torch.Tensor, y: torch.Tensor) -> Experiment:
    b = Builder()
    result = b.op("matmul", "y", x=b.input("a", x.shape), y=b.input("b", y.shape), transpose_x=False, transpose_y=False)
    return Experiment.of(b, [result], {"a": x, "b": y})


def _elementwise(factors: list[float]) -> Experiment:
    b = Builder()
    x = torch.tensor([65504.0, 40000.0, 3.0, -65504.0]).repeat(8).reshape(1, 1, 1, 32)
    value = b.input("x", x.shape)
    for factor in factors[:-1]:
        value = b.op("mul", x=value, y=factor)
    return Experiment.of(b, [b.op("mul", "y", x=value, y=factors[-1])], {"x": x})


def _slice() -> Experiment:
    b = Builder()
    x = torch.linspace(-8000, 8000, 64).half().double().reshape(1, 1, 1, 64)
    result = b.op("slice_by_size", "y", x=b.input("x", x.shape), begin=[0, 0, 0, 16], size=[1, 1, 1, 32])
    return Experiment.of(b, [result], {"x": x})
