"""The charts of a report, as Vega-Lite specifications made with altair."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import altair as alt

from anew.report.drawing import SIDES, STEPS, VALIDATIONS, Chart, color_by_run, draw, step_axis, value
from anew.report.points import step_points
from anew.report.run import Run

#: Height of a part in the picture of the placement.
BLOCK = 30
#: A step that takes so many times the median is left out when the axis of the steps' time is chosen.
USUAL = 4


def charts(runs: Sequence[Run]) -> list[Chart]:
    """Return every chart that the records of the runs have data for."""
    color = color_by_run(runs)
    drawn = [_loss(runs, color)]
    if any(run.records[1:] for run in runs):
        drawn += [*_curves(color), _rescaled(runs, color), _step_time(runs, color)]
    own = [
        _time_split(runs),
        *(_placement(run, at, len(runs)) for at, run in enumerate(runs)),
        _projection(runs, color),
    ]
    return [*drawn, *(chart for chart in own if chart is not None)]


def _curves(color: alt.Color) -> list[Chart]:
    return [
        _curve(color, "rate", "Learning rate", "", "Learning rate over the steps", ".1e"),
        _curve(color, "norm", "Gradient norm", "", "Norm of the gradient before clipping, over the steps"),
        _curve(color, "scale", "Loss scale", "", "Loss scale over the steps; 1 where regions scale their own operands"),
        _curve(color, "speed", "Speed", "tokens a second", "Tokens learned from a second, over the steps"),
        _curve(color, "memory", "Peak memory", "GB", "Largest memory of the process so far, over the steps"),
    ]


def _curve(color: alt.Color, field: str, title: str, unit: str, about: str, form: str = "") -> Chart:
    drawn = (
        alt.Chart(STEPS)
        .transform_filter(f"isValid(datum.{field})")
        .mark_line(interpolate="step-after" if field == "scale" else "linear")
        .encode(x=step_axis(), y=value(field, unit, form), color=color, tooltip=["run:N", "step:Q", f"{field}:Q"])
    )
    return draw(field, title, about, drawn)


def _loss(runs: Sequence[Run], color: alt.Color) -> Chart:
    kind = alt.StrokeDash("kind:N", scale=alt.Scale(domain=["training", "validation"], range=[[1, 0], [5, 3]]))
    shared = {"x": step_axis(), "color": color, "tooltip": ["run:N", "kind:N", "step:Q", "loss:Q"]}
    training = (
        alt.Chart(STEPS)
        .transform_filter("isValid(datum.loss)")
        .transform_calculate(kind="'training'")
        .mark_line(opacity=0.75)
        .encode(y=value("loss", "nats per token"), strokeDash=kind, **shared)
    )
    validation = (
        alt.Chart(VALIDATIONS)
        .transform_calculate(kind="'validation'")
        .mark_line(point={"size": 45, "filled": True})
        .encode(y=value("loss", "nats per token"), strokeDash=kind, **shared)
    )
    ends = "; ".join(_loss_in_words(run) for run in runs)
    return draw("loss", "Loss", f"Training and validation loss over the steps. {ends}.", training + validation, 320)


def _loss_in_words(run: Run) -> str:
    validated = [r.val_loss for r in run.records if r.val_loss is not None]
    trained = [r.train_loss for r in run.records if r.train_loss is not None]
    ends = [f"{what} {x[0]:.3f} to {x[-1]:.3f}" for what, x in (("training", trained), ("validation", validated)) if x]
    return f"{run.name}: {', '.join(ends) or 'nothing measured'}"


def _rescaled(runs: Sequence[Run], color: alt.Color) -> Chart:
    most = max(point["rescaled"] for point in step_points(runs))
    drawn = (
        alt.Chart(STEPS)
        .mark_bar(width=3)
        .encode(
            x=step_axis(),
            y=alt.Y("rescaled:Q")
            .title("calls run again")
            .axis(format="d", tickCount=min(max(most, 1), 6))
            .scale(domain=[0, max(most, 1)])
            .stack(None),
            color=color,
            tooltip=["run:N", "step:Q", "rescaled:Q"],
        )
    )
    about = "Region calls that ran again because a value outgrew its operand scale: none of their results was used"
    about += "" if most else "; there were none"
    return draw("rescaled", "Operand-scale saturations", about, drawn)


def _step_time(runs: Sequence[Run], color: alt.Color) -> Chart:
    top, beyond = _usual_time(runs)
    drawn = (
        alt.Chart(STEPS)
        .transform_fold(["device", "host"], as_=["where", "seconds"])
        .transform_filter("isValid(datum.seconds)")
        .transform_calculate(side="datum.where == 'device' ? 'programs on the device' : 'host'")
        .encode(x=step_axis(), tooltip=["run:N", "step:Q", "side:N", "seconds:Q"])
    )
    y = alt.Y("seconds:Q").title("seconds").axis(tickCount=6).scale(domain=[0, top])
    sides = alt.Scale(domain=["programs on the device", "host"], range=list(SIDES.values()))
    if len(runs) == 1:
        drawn = drawn.mark_area(opacity=0.85, clip=True).encode(y=y, color=alt.Color("side:N", scale=sides))
    else:
        dash = alt.StrokeDash("side:N").scale(domain=sides.domain, range=[[1, 0], [5, 3]])
        drawn = drawn.mark_line(clip=True).encode(y=y, color=color, strokeDash=dash)
    about = f"Seconds of a step in programs on the device and on the host{beyond}"
    return draw("seconds", "Time of a step", about, drawn)


def _usual_time(runs: Sequence[Run]) -> tuple[float, str]:
    """Where the axis of a step's seconds ends, and a word on the longest step if it, a first one that compiles, is far
    beyond."""
    times = [point["device"] + point["host"] for point in step_points(runs) if point["host"] is not None]
    if not times:
        return 1.0, ""
    usual = USUAL * median(times)
    if max(times) <= usual:
        return max(times), ""
    top = 1.1 * max(t for t in times if t <= usual)
    return top, f"; up to {max(times):.2g} s where programs were compiled or the machine was busy, beyond this chart"


def split_of_time(run: Run) -> dict[str, float]:
    """Return the seconds of a whole run by what they were spent on; empty while it has not ended."""
    spent = dict(run.about.get("seconds", {}))
    if not spent:
        return {}
    total, training = spent.pop("total"), spent.pop("training")
    device = sum(r.device_seconds or 0.0 for r in run.records)
    found = {"programs on the device": device, "host, in steps": max(training - device, 0.0), **spent}
    return {**found, "everything else": max(total - sum(found.values()), 0.0)}


def _time_split(runs: Sequence[Run]) -> Chart | None:
    rows = [
        {"run": run.name, "what": what, "seconds": round(seconds, 3), "order": order}
        for run in runs
        for order, (what, seconds) in enumerate(split_of_time(run).items())
    ]
    if not rows:
        return None
    drawn = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(size=28)
        .encode(
            x=alt.X("seconds:Q").title("seconds").axis(tickCount=6),
            y=alt.Y("run:N")
            .title(None)
            .sort(None)
            .axis(labels=len(runs) > 1, ticks=False, domain=False, labelLimit=90),
            color=alt.Color("what:N").sort(None),
            order="order:Q",
            tooltip=["run:N", "what:N", "seconds:Q"],
        )
    )
    about = "Seconds of the whole run by what they were spent on"
    return draw("split", "Where the time went", about, drawn, 44 * len(runs) + 20)


def _placement(run: Run, at: int, runs: int) -> Chart | None:
    parts = run.about.get("parts")
    if not parts:
        return None
    rows = [{**part, "row": row, "label": _label(part)} for row, part in enumerate(parts)]
    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("row:O").axis(None))
    blocks = base.mark_rect(cornerRadius=5, stroke="currentColor", strokeOpacity=0.2).encode(
        color=alt.Color("where:N").scale(domain=list(SIDES), range=list(SIDES.values())),
        tooltip=["name:N", "kind:N", "count:Q", "where:N", "parameters:Q"],
    )
    labels = base.mark_text(color="white", fontSize=12, limit=alt.expr("width - 12")).encode(
        text="label:N", x=alt.value(alt.expr("width / 2"))
    )
    words = ", ".join(f"{part['name']} on the {part['where']}" for part in parts)
    title = "Placement" + (f" of {run.name}" if runs > 1 else "")
    return draw(f"placement-{at}", title, f"From input to output: {words}.", blocks + labels, BLOCK * len(parts))


def _label(part: dict[str, Any]) -> str:
    size = part["parameters"]
    shown = f"{size / 1e6:.1f}M" if size >= 1e6 else f"{size / 1e3:.1f}K" if size >= 1e3 else str(size)
    kind = f"{part['count']} x {part['kind']}" if part["count"] > 1 else part["kind"]
    return f"{part['name']} · {kind} · {shown}"


def _projection(runs: Sequence[Run], color: alt.Color) -> Chart | None:
    """Projected milliseconds of a batch by chip, with their ranges, where the record of a run has them."""
    rows = [
        {"run": run.name, "chip": row["chip"], **{what: 1e3 * row[what] for what in ("seconds", "low", "high")}}
        for run in runs
        for row in run.projection.get("chips", [])
    ]
    if not rows:
        return None
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("chip:N").title(None).axis(grid=True), yOffset="run:N", color=color
    )
    x = alt.X("seconds:Q").title("milliseconds, projected").scale(type="log").axis(grid=False, tickCount=5, format="~r")
    points = base.mark_point(filled=True, size=70).encode(
        x=x, tooltip=["run:N", "chip:N", "seconds:Q", "low:Q", "high:Q"]
    )
    ranges = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q")
    about = "Projected, not measured: one batch with its optimizer step on each chip, with the range of the projection"
    return draw("projection", "Projected time", about, ranges + points, 36 * len({r["chip"] for r in rows}) * len(runs))
