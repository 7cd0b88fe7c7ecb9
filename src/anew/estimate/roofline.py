"""The roofline of a projected step: what its kinds of time allow at each intensity, and where the step stands."""

from __future__ import annotations

from pathlib import Path

import altair as alt

from anew.errors import UserError
from anew.estimate.step import Estimate
from anew.projection import read_rates
from anew.projection.work import FP16_BYTES

POINTS = 40


def intensity(found: Estimate) -> float:
    """Floating-point operations for each byte of fp16 that passes between host and engine or is streamed by it."""
    work = found.counted.work
    return found.flops / (FP16_BYTES * (work.read + work.write) + work.weight_bytes)


def draw(found: Estimate, name: str, path: Path) -> None:
    """Write the chart as PNG; raises UserError when it cannot be written."""
    rates = read_rates(found.chip).seconds
    peak, stream = 1e-12 / rates.matmul, FP16_BYTES / rates.read / 1e12
    here = intensity(found)
    axis = [10 ** (i * 5 / POINTS) for i in range(POINTS + 1)]
    streamed = 1e-12 / rates.weight_bytes
    roofs = [
        {"roof": roof, "intensity": x, "tflops": min(x * slope, peak)}
        for roof, slope in (("copies of the host, then matmuls", stream), ("streaming, then matmuls", streamed))
        for x in axis
    ]
    base = {"x": alt.X("intensity:Q", scale=alt.Scale(type="log"), title="FLOPs a byte moved")}
    y = alt.Y("tflops:Q", scale=alt.Scale(type="log"), title="TFLOPS (projected)")
    lines = alt.Chart(alt.Data(values=roofs)).mark_line().encode(**base, y=y, color=alt.Color("roof:N", title=None))
    points = [{"intensity": here, "tflops": found.tflops, "name": f"{name}, whole step"}]
    dots = alt.Chart(alt.Data(values=points)).mark_point(filled=True, size=90, color="black").encode(**base, y=y)
    labels = alt.Chart(alt.Data(values=points)).mark_text(dy=-12).encode(**base, y=y, text="name:N")
    chart = (lines + dots + labels).properties(
        width=560, height=340, title=f"{name} on {found.chip}: projected roofline"
    )
    partial = path.with_name(f".{path.name}.partial")
    try:
        chart.save(str(partial), format="png", scale_factor=2)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
