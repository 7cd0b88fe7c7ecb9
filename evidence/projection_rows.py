"""Published latencies as amounts of work: which class each row is of, by script and shape alone, and what ran.

A ``copy`` row measures the host moving tensors in and out; an ``engine`` row one operation, or a chain of convolutions;
a ``fused`` row several operations in one program; a ``decode`` row a whole decoder, which streams its weights. What ran
is what the scripts of ANEForge that measured the rows say (bench/, of the same release), down to the configuration
that ``--quick`` puts in place of the one in a row's label.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from anew.projection import (
    Work,
    activation,
    convolution,
    layer_norm,
    matmul,
    reduction,
    softmax,
    streamed,
)

DATA = Path(__file__).resolve().parent.parent / "data"
CSV = DATA / "silicon.csv"
#: Rows of the same project's earlier reports, whose host code and machines' settings differ.
REPORTS = DATA / "silicon_reports.csv"
#: Layers, channels, hidden channels and cached tokens of a decoder; heads and vocabulary are the same in both.
DECODER, QUICK_DECODER = (8, 2048, 8192, 256), (4, 1024, 4096, 128)
VOCABULARY, HEADS = 32000, 16
#: Passes over the elements of a group norm, and over a decoder's channels and hidden channels in a layer: two norms of
#: five, two residuals; the gate's two.
GROUP_NORM, RESIDUALS, GATE = 8, 12, 2


@dataclass(frozen=True)
class Row:
    """One measured latency: chip, workload, class, work, seconds, and whether its host code is the earlier one."""

    chip: str
    workload: str
    kind: str
    work: Work
    seconds: float
    earlier: bool = False


def _with_copies(work: Work, read: int, write: int) -> Work:
    return work + Work(dispatches=1, read=read, write=write)


def _attention(tokens: int, model: int, heads: int) -> Work:
    """Four projections with bias, scores, their scale and softmax, values; queries, keys, values, result turned."""
    scores, elements = heads * tokens**2, tokens * model
    products = matmul(tokens, model, model) * 4 + Work(matmul=4.0 * tokens**2 * model)
    passes = Work(attention=scores, elementwise=scores + 8 * elements)
    return _with_copies(products + passes, elements, elements)


def _jacobi(size: int, iterations: int) -> Work:
    """A vector times a matrix, a difference and a product, so many times; three vectors go in."""
    once = matmul(1, size, size) + Work(elementwise=2 * size)
    return _with_copies(once * iterations, 3 * size, size)


def _decoder(rows: int, quick: bool, bits: int) -> Work:
    """One token of each row through a decoder whose cached keys and values are inputs."""
    layers, model, hidden, cached = QUICK_DECODER if quick else DECODER
    weights = layers * (4 * model**2 + 3 * model * hidden) + VOCABULARY * model
    cache = layers * 2 * rows * cached * model
    passes = layers * rows * (RESIDUALS * model + GATE * hidden) + cache
    products = Work(matmul=2.0 * rows * weights + 2.0 * cache) + streamed(weights * bits / 8)
    scores = Work(attention=layers * rows * HEADS * cached, elementwise=passes)
    return _with_copies(products + scores, cache + rows * model, rows * VOCABULARY)


def _neck(channels: int, positions: int) -> Work:
    """A convolution of one tap, a group norm and two activations in one program."""
    elements = channels * positions
    passes = Work(elementwise=(GROUP_NORM + 2) * elements)
    return _with_copies(convolution(1, channels, positions, 1) + passes, elements, elements)


def _saturation(workload: str, n: list[int]) -> tuple[str, Work]:
    if workload.startswith("matmul"):
        return "engine", _with_copies(matmul(n[0], n[0], n[0]), n[0] ** 2, n[0] ** 2)
    batch, channels, height, width = n[2:]
    elements = batch * channels * height * width
    return "engine", _with_copies(convolution(batch, channels, height * width, 9), elements, elements)


def _bandwidth(workload: str, n: list[int]) -> tuple[str, Work]:
    rows, length = n[-2:]
    elements, one = rows * length, Work(dispatches=1)
    if workload.startswith("layer_norm"):
        return "engine", layer_norm(elements) + one
    if workload.startswith("reduction"):
        return "copy", reduction(rows, length) + one
    if workload.startswith("softmax"):
        return "copy", softmax(elements) + one
    if workload.startswith("streaming"):
        return "copy", activation(elements) + one
    return "copy", Work(dispatches=1, read=elements, write=elements)


def _compared(workload: str, n: list[int], earlier: bool) -> tuple[str, Work] | None:
    if workload.startswith("GEMM"):
        rows, inner, columns = n
        return "engine", _with_copies(matmul(rows, inner, columns), rows * inner, rows * columns)
    if workload.startswith("conv"):
        channels, height, width, kernel, depth = n
        elements = channels * height * width
        chain = convolution(1, channels, height * width, kernel**2) * depth
        return "engine", _with_copies(chain, elements, elements)
    if workload.startswith("layer_norm") or (workload.startswith("rms_norm") and not earlier):
        return "engine", layer_norm(n[0] * n[1]) + Work(dispatches=1)
    if workload.startswith("DFT"):
        return "engine", _with_copies(matmul(1, n[0], n[0]), n[0], n[0]) * 2
    if workload.startswith("group_norm"):
        elements = n[1] * n[2] * n[3]
        return "fused", _with_copies(Work(elementwise=GROUP_NORM * elements), elements, elements)
    if workload.startswith("stencil"):
        elements, steps = n[1] * n[2], n[3]
        return "fused", _with_copies(Work(elementwise=steps * elements), elements, elements)
    if workload.startswith("attention"):
        return "fused", _attention(*n)
    return ("fused", _jacobi(*n)) if workload.startswith("Jacobi") else None


def _cost_model(workload: str, n: list[int]) -> tuple[str, Work] | None:
    if workload.startswith("matmul K"):
        return "engine", _with_copies(matmul(1, n[0], n[0]), n[0], n[0])
    if workload.startswith("matmul_rect"):
        rows, inner, columns = n[0], n[1], n[3]
        return "engine", _with_copies(matmul(rows, inner, columns), rows * inner, rows * columns)
    if workload.startswith("conv"):
        channels, kernel, _, stride, height, width = n
        read, write = channels * height * width, channels * height * width // stride**2
        return "engine", _with_copies(convolution(1, channels, height * width // stride**2, kernel**2), read, write)
    name, elements = workload.split()[1], 1
    for length in n:
        elements *= length
    if name in ("relu", "gelu", "sigmoid"):
        return "copy", Work(dispatches=1, read=elements, write=elements)
    if name == "softmax":
        return "copy", softmax(elements) + Work(dispatches=1)
    if name == "layer_norm":
        return "engine", layer_norm(elements) + Work(dispatches=1)
    if name == "group_norm":
        return "fused", _with_copies(Work(elementwise=GROUP_NORM * elements), elements, elements)
    return None


def _describe(row: dict[str, str], earlier: bool, quick: bool) -> tuple[str, Work] | None:
    """Return the class and work of a row, or None for one that is left out."""
    script, workload = row["script"], row["workload"]
    n = [int(x) for x in re.findall(r"\d+", workload)]
    if script == "device_saturation_sweep":
        return _saturation(workload, n)
    if script == "device_bandwidth_roofline":
        return _bandwidth(workload, n)
    if script == "decode_measurement":
        return "decode", _decoder(n[-1], quick, 8 if row["device"] == "ANE8" else 16)
    if script == "ane_cost_model":
        return _cost_model(workload, n)
    if script == "below_ridge_fusion":
        return "fused", _neck(n[-3], n[-2] * n[-1])
    return _compared(workload, n, earlier)


def _measured(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [r for r in csv.DictReader(file) if r["device"].startswith("ANE") and r["latency_ms"]]


def _quick_runs(rows: list[dict[str, str]]) -> set[str]:
    """Runs made with ``--quick``: their sweep has no matmul beyond 4096, which the full one has on every chip."""
    matmuls = [r for r in rows if r["workload"].startswith("matmul")]
    return {r["run"] for r in matmuls} - {r["run"] for r in matmuls if r["workload"].endswith("6144")}


def read_rows() -> tuple[list[Row], dict[str, int]]:
    """Return the rows of the engine, and how many of each script were left out."""
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    for path in (CSV, REPORTS):
        measured, earlier = _measured(path), path == REPORTS
        quick = _quick_runs(measured)
        for row in measured:
            described = _describe(row, earlier, row["run"] in quick)
            if described is None:
                left_out[row["script"]] += 1
                continue
            kind, work = described
            chip = row["chip"].lower().replace(" ", "-")
            workload = row["workload"] + (", int8" if row["device"] == "ANE8" else "")
            rows.append(Row(chip, workload, kind, work, float(row["latency_ms"]) / 1e3, earlier))
    return rows, dict(left_out)
