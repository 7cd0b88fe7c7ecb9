"""The engine's rows of data/silicon.csv: which kind each is, by script and shape alone, and the work it stands for.

A copy row measures the host moving tensors in and out; an engine row also measures arithmetic. Left out: rows of
decode_measurement, whose labels do not say what ran (8 layers of the named size hold 805 MB in fp16; the M2 Pro's GPU
would have read them at 353 GB/s), and the workloads of device_compare whose programs are not described.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from anew.projection import Work, convolution, elementwise, layer_norm, matmul, reduction, softmax

CSV = Path(__file__).resolve().parent.parent / "data" / "silicon.csv"


@dataclass(frozen=True)
class Row:
    """One measured latency: chip, workload, kind (``engine`` or ``copy``), work and seconds."""

    chip: str
    workload: str
    kind: str
    work: Work
    seconds: float


def _with_copies(work: Work, read: int, write: int) -> Work:
    return work + Work(read=read, write=write)


def _describe(script: str, workload: str) -> tuple[str, Work] | None:
    """Return the kind and work of a workload, or None for one that is left out."""
    n = [int(x) for x in re.findall(r"\d+", workload)]
    if script == "device_saturation_sweep" and workload.startswith("matmul"):
        size = n[0]
        return "engine", _with_copies(matmul(size, size, size), size * size, size * size)
    if script == "device_saturation_sweep":
        batch, channels, height, width = n[2:]
        elements = batch * channels * height * width
        return "engine", _with_copies(convolution(batch, channels, height * width, 9), elements, elements)
    if script == "device_bandwidth_roofline":
        rows, length = n[-2:]
        elements = rows * length
        if workload.startswith("layer_norm"):
            return "engine", layer_norm(elements)
        if workload.startswith("reduction"):
            return "copy", reduction(rows, length)
        if workload.startswith("softmax"):
            return "copy", softmax(elements)
        return "copy", elementwise(elements) if workload.startswith("streaming") else Work(
            read=elements, write=elements
        )
    if workload.startswith("GEMM"):
        rows, inner, columns = n
        return "engine", _with_copies(matmul(rows, inner, columns), rows * inner, rows * columns)
    if workload.startswith("conv"):
        channels, height, width, kernel, depth = n
        elements = channels * height * width
        return "engine", _with_copies(convolution(1, channels, height * width, kernel**2) * depth, elements, elements)
    if workload.startswith(("layer_norm", "rms_norm")):
        return "engine", layer_norm(n[0] * n[1])
    return None


def read_rows() -> tuple[list[Row], dict[str, int]]:
    """Return the rows of the engine in fp16, and how many of each script were left out."""
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    with CSV.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if not row["device"].startswith("ANE") or not row["latency_ms"]:
                continue
            described = _describe(row["script"], row["workload"])
            if described is None:
                left_out[row["script"]] += 1
                continue
            kind, work = described
            chip = row["chip"].lower().replace(" ", "-")
            rows.append(Row(chip, row["workload"], kind, work + Work(dispatches=1), float(row["latency_ms"]) / 1e3))
    return rows, dict(left_out)
