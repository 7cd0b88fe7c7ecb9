"""What README and docs say: every measured figure has a record, the demo's output is real, the example runs."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

#: [text](…/evidence/NAME.json "path.to.figure")
QUOTE = re.compile(r"\[([^\]]+)\]\(([\w./-]*evidence/[\w-]+\.json) \"([\w.]+)\"\)")
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: A figure that somebody measured: a decimal fraction, or a number with a unit of time, rate, size, power or percent.
UNITS = "ms|s|min|minutes|seconds|%|×|GFLOP/s|TFLOPS|GB|GiB|W"
FIGURE = re.compile(rf"(?<![\w.^-])\d[\d,]*(?:\.\d+|(?:\.\d+)?\s?(?:{UNITS})(?!\w))(?!\.?\d)")


@functools.cache
def figures(path: Path) -> dict[str, object]:
    return json.loads(path.read_text())["figures"]


def lookup(page: Path, link: str, key: str) -> object:
    value: object = figures((page.parent / link).resolve())
    for part in key.split("."):
        assert isinstance(value, dict)
        assert part in value, f"{page.name}: {link} has no figure '{key}'"
        value = value[part]
    return value


def quotes() -> list[tuple[Path, str, str, str]]:
    return [(page, *match.groups()) for page in PAGES for match in QUOTE.finditer(page.read_text())]


def test_there_are_quotes() -> None:
    assert len(quotes()) > 10


@pytest.mark.parametrize(("page", "text", "link", "key"), quotes())
def test_quoted_figure_has_its_record(page: Path, text: str, link: str, key: str) -> None:
    value = lookup(page, link, key)
    assert isinstance(value, (int, float))
    number = re.search(r"-?[\d,]+(?:\.\d+)?(?:e-?\d+)?", text)
    assert number is not None, f"{page.name}: '{text}' quotes no number"
    shown = _written_like(number.group().replace(",", ""), value * 100 if "%" in text else value, text)
    assert number.group() == shown, f"{page.name}: '{text}' but {link} says {key} = {value}"


def _written_like(digits: str, value: float, text: str) -> str:
    """The value with as many digits as the page writes."""
    mantissa, _, exponent = digits.partition("e")
    decimals = len(mantissa.partition(".")[2])
    if not exponent:
        return f"{value:,.{decimals}f}" if "," in text else f"{value:.{decimals}f}"
    shown, _, power = f"{value:.{decimals}e}".partition("e")
    return f"{shown}e{int(power)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_figures_without_record_name_their_source(page: Path) -> None:
    """A figure outside code quotes a record, or its paragraph names a source."""
    prose = re.sub(r"`[^`]*`", "", QUOTE.sub("", FENCE.sub("", page.read_text())))
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
        recorded = lookup(page, str(ROOT / "docs" / "evidence" / f"{name}.json"), key)
        assert isinstance(recorded, list)
        lines = [line.rstrip() for line in recorded]
        assert "\n".join(lines).find(body.rstrip()) >= 0, f"{page.name} shows output that {name}.json does not have"


def test_readme_example_runs() -> None:
    (code,) = [body for info, body in FENCE.findall((ROOT / "README.md").read_text()) if info == "python"]
    scope: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["loss"].item() < 7.0
