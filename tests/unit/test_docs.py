"""What README and docs say: every measured figure has a record, the demo's output is real, the example runs."""

from __future__ import annotations

import re
import shlex
import sys
import types
from pathlib import Path

import pytest

from anew.cli.main import build_parser
from evidence.__main__ import MEASUREMENTS
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


BLOCKS = [(page, *match.groups()) for page in PAGES for match in FENCE.finditer(page.read_text())]
SCRIPTS = [(page, body) for page, info, body in BLOCKS if info.split()[:1] == ["python"] and "fragment" not in info]
COMMANDS = [
    (page, line.partition(" # ")[0].strip())
    for page, info, body in BLOCKS
    if info.split()[:1] == ["sh"]
    for line in body.replace("\\\n", " ").splitlines()
    if line.strip() and not line.lstrip().startswith("#")
]


@pytest.mark.parametrize(("page", "code"), SCRIPTS, ids=[f"{page.name}-{n}" for n, (page, _) in enumerate(SCRIPTS)])
def test_code_of_a_page_runs(page: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType(f"code of {page.name}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # Dynamo looks for the classes that it defines there
    scope = vars(module)
    exec(compile(code, page.name, "exec"), scope)
    if page.name == "README.md":
        assert scope["loss"].item() < 7.0
    if page.name == "placement.md":
        assert {use.kind for use in scope["found"].host if "cumsum" in use.operation} == {"fallback"}
    if page.name == "getting-started.md":
        assert scope["losses"][-1] < scope["losses"][0]


def test_fragments_are_of_the_source() -> None:
    fragments = [body.splitlines()[0] for _, info, body in BLOCKS if "fragment" in info]
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    assert fragments
    assert all(first in source for first in fragments)


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{p.name}-{c[:40]}" for p, c in COMMANDS])
def test_command_of_a_page_exists(page: Path, command: str) -> None:
    """Its verb, flags and targets do; what the commands do is tested verb by verb, and measured by their records."""
    command = command.rpartition(" | ")[2]
    words = shlex.split(re.sub(r"\[[^\]]*\]", "", command))  # what stands in brackets may be left away
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # variables of the environment
        words = words[1:]
    if words[:2] == ["torchrun", "--nproc_per_node"]:
        words = words[4:] if words[3] == "-m" else ["python", *words[3:]]
    if words[0] == "anew":
        build_parser().parse_args(words[1:])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[:3] == ["python", "-m", "evidence"]:
        assert set(words[3:]) <= set(MEASUREMENTS)
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[0] in (".", "pip"), command
