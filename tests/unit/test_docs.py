"""What README and docs say: every measured figure has a record, the demo's output is real, the example runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evidence.quotes import PATTERN, Quote, pages, quotes
from evidence.record import FOLDER, ROOT

PAGES = pages()

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: A figure that somebody measured: a decimal fraction, or a number with a unit of time, rate, size, power or percent.
UNITS = "ms|s|min|minutes|seconds|%|×|GFLOP/s|TFLOPS|GB|GiB|W"
FIGURE = re.compile(rf"(?<![\w.^-])\d[\d,]*(?:\.\d+|(?:\.\d+)?\s?(?:{UNITS})(?!\w))(?!\.?\d)")


QUOTES = [quote for page in PAGES for quote in quotes(page)]


def test_there_are_quotes() -> None:
    assert len(QUOTES) > 10


@pytest.mark.parametrize("quote", QUOTES, ids=lambda q: f"{q.page.name}-{q.key}")
def test_quoted_figure_has_its_record(quote: Quote) -> None:
    assert quote.text == quote.current, f"{quote.page.name}: {quote.link} says {quote.key} = {quote.value}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_figures_without_record_name_their_source(page: Path) -> None:
    """A figure outside code quotes a record, or its paragraph names a source."""
    prose = re.sub(r"`[^`]*`", "", PATTERN.sub("", FENCE.sub("", page.read_text())))
    for paragraph in prose.split("\n\n"):
        found = FIGURE.search(paragraph)
        sourced = "source:" in paragraph.lower()
        assert found is None or sourced, (
            f"{page.name}: '{found.group()}' has no record and no source: {paragraph[:200]}"
        )


def test_shown_output_is_recorded() -> None:
    shown = [(page, *match.groups()) for page in PAGES for match in FENCE.finditer(page.read_text())]
    outputs = [(page, info.split("evidence:")[1].strip(), body) for page, info, body in shown if "evidence:" in info]
    assert outputs
    for page, reference, body in outputs:
        name, key = reference.split(".", 1)
        recorded = Quote(page, "", str(FOLDER / f"{name}.json"), key).value
        assert isinstance(recorded, list)
        lines = [line.rstrip() for line in recorded]
        assert "\n".join(lines).find(body.rstrip()) >= 0, f"{page.name} shows output that {name}.json does not have"


def test_readme_example_runs() -> None:
    (code,) = [body for info, body in FENCE.findall((ROOT / "README.md").read_text()) if info == "python"]
    scope: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["loss"].item() < 7.0
