"""The roofline of a projected step: what its kinds of time allow at each intensity, and where the step stands."""

from __future__ import annotations

from pathlib import Path

import altair as alt

from anew.errors import UserError
from anew.estimate.step import Estimate
from anew.projection import read_rates

#: Of FLOPs a byte, from one to ten thousand.
RANGE = (1.0, 1e4)


def intensity(found: Estimate) -> float:
    """Floating-point operations for each byte that the engine streams from or to memory."""
    return found.flops / found.counted.work.weight_bytes


def draw(found: Estimate, name: str, path: Path) -> None:
    """Write the chart as PNG; raises UserError when it cannot be written."""
    rates = read_rates(found.chip).seconds
    peak, here = 1e-12 / rates.matmul, intensity(found)
    near, far = 1e-12 / rates.weight_bytes, 1e-12 / (rates.weight_bytes + rates.fetched)
    slopes = {"operands that stay on the engine": near, "operands from memory": far}
    roofs = [
        {"roof": roof, "intensity": x, "tflops": min(x * slope, peak)}
        for roof, slope in slopes.items()
        for x in (RANGE[0], peak / slope, RANGE[1])
    ]
    base = {"x": alt.X("intensity:Q", scale=alt.Scale(type="log", domain=RANGE), title="FLOPs a byte streamed")}
    y = alt.Y("tflops:Q", scale=alt.Scale(type="log"), title="TFLOPS (projected)")
    lines = alt.Chart(alt.Data(values=roofs)).mark_line().encode(**base, y=y, color=alt.Color("roof:N", title=None))
    engine = found.flops / (found.split["engine"] + found.split["wait"]) / 1e12
    points = [
        {"intensity": here, "tflops": found.tflops, "name": f"{name}, whole step"},
        {"intensity": here, "tflops": engine, "name": "while the engine is at it"},
    ]
    dots = alt.Chart(alt.Data(values=points)).mark_point(filled=True, size=90, color="black").encode(**base, y=y)
    labels = alt.Chart(alt.Data(values=points)).mark_text(dx=10, align="left").encode(**base, y=y, text="name:N")
    chart = (lines + dots + labels).properties(
        width=560, height=340, title=f"{name} on {found.chip}: projected roofline"
    )
    if path.exists() and not path.is_file():  # a device would be replaced by a file
        raise UserError(f"cannot write {path}: it is there and no file; give another name")
    partial = path.with_name(f".{path.name}.partial")
    try:
        chart.save(str(partial), format="png", scale_factor=2)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from error
