"""The page: charts, tables and samples in one HTML file, with the library that draws the charts inside."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anew.report.run import Run, read_runs

#: The file's name in a run's folder.
REPORT = "report.html"


def write_report(folders: Sequence[Path], path: Path) -> None:
    """Write the report of one run, or of several side by side, to a file that is whole or not there.

    Raises UserError if a folder holds no run, or what it holds cannot be read; OSError if the file cannot be written.
    """
    page = render(read_runs(list(folders)))
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


def render(runs: Sequence[Run]) -> str:
    """Return the HTML of a report."""
    # Here, not above: every run imports this module, and those who want no report should not wait for these.
    import jinja2

    from anew.report import facts
    from anew.report.charts import charts
    from anew.report.drawing import CONFIG
    from anew.report.points import step_points, steps_to_a_point, validation_points

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("anew.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    drawn = charts(runs)
    return environment.get_template("page.html").render(
        title=", ".join(run.name for run in runs),
        runs=runs,
        facts=facts,
        charts=drawn,
        averaged=steps_to_a_point(runs),
        vega=_vega(),
        data=_json({"steps": step_points(runs), "validations": validation_points(runs)}),
        specs=_json({chart.id: chart.spec for chart in drawn}),
        config=_json(CONFIG),
    )


def _json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends one."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


@functools.cache
def _vega() -> str:
    """Vega, Vega-Lite and vega-embed as one script."""
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
