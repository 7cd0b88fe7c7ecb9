"""Figures that pages quote: ``[TEXT](…/evidence/NAME.json "path.to.figure")``, checked by a test, refreshed here.

``python -m evidence quotes`` writes every quoted figure anew from its record, with as many digits as the page shows.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

from evidence.record import FOLDER, ROOT

PATTERN = re.compile(r"\[([^\]]+)\]\(([\w./-]*evidence/[\w-]+\.json) \"([\w.-]+)\"\)")
NUMBER = re.compile(r"-?[\d,]+(?:\.\d+)?(?:e-?\d+)?")


@dataclass(frozen=True)
class Quote:
    """A figure on a page: its text, the record's path relative to the page, and the figure's place in the record."""

    page: Path
    text: str
    link: str
    key: str

    @property
    def value(self) -> object:
        """What the record says. Raises KeyError naming what it does not have."""
        found: object = figures((self.page.parent / self.link).resolve())
        for part in self.key.split("."):
            if not isinstance(found, dict) or part not in found:
                raise KeyError(f"{self.page.name}: {self.link} has no figure '{self.key}'")
            found = found[part]
        return found

    @property
    def current(self) -> str:
        """The text as the record has it now. Raises ValueError if either is no number."""
        number, value = NUMBER.search(self.text), self.value
        if number is None or not isinstance(value, (int, float)):
            raise ValueError(f"{self.page.name}: '{self.text}' quotes {self.key}, and one of them is no number")
        shown = _written_like(number.group(), value * 100 if "%" in self.text else value)
        return self.text[: number.start()] + shown + self.text[number.end() :]


def pages() -> list[Path]:
    """README and every page of docs/."""
    return [ROOT / "README.md", *sorted(FOLDER.parent.glob("*.md"))]


def quotes(page: Path) -> list[Quote]:
    """Every quote of a page."""
    return [Quote(page, *match.groups()) for match in PATTERN.finditer(page.read_text())]


@functools.cache
def figures(record: Path) -> dict[str, object]:
    """The figures of a record."""
    found: dict[str, object] = json.loads(record.read_text())["figures"]
    return found


def _written_like(number: str, value: float) -> str:
    """The value with as many digits as the number before it."""
    mantissa, _, exponent = number.partition("e")
    decimals = len(mantissa.partition(".")[2])
    if not exponent:
        return f"{value:,.{decimals}f}" if "," in number else f"{value:.{decimals}f}"
    shown, _, power = f"{value:.{decimals}e}".partition("e")
    return f"{shown}e{int(power)}"


def refresh(page: Path) -> None:
    """Write every figure of a page anew."""

    def current(match: re.Match[str]) -> str:
        quote = Quote(page, *match.groups())
        return f'[{quote.current}]({quote.link} "{quote.key}")'

    partial = page.with_suffix(".partial")
    partial.write_text(PATTERN.sub(current, page.read_text()))
    partial.rename(page)


def main() -> None:
    """Refresh README and docs."""
    for page in pages():
        refresh(page)
