"""Published programs on the emulated engine, chip by chip, and what chips are known to do: ``docs/corpus.md``,
``docs/chips.md``.

Nothing here is measured on silicon or depends on the machine: the pages are computed from the data files of the chips
and from the programs in ``tests/corpus``, and a test compares them with what is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from anew.chips import Chip, known_chips, load_chip
from evidence.record import ROOT
from tests.corpus.accept import ACCEPT
from tests.corpus.case import Outcome, Row, outcomes
from tests.corpus.reject import ELSEWHERE, REJECT

CORPUS, CHIPS = ROOT / "docs" / "corpus.md", ROOT / "docs" / "chips.md"
STAGES = {"parse": "refused as text", "compile": "does not compile", "load": "does not load", "eval": "does not bind"}


def main() -> None:
    """Write both pages."""
    CORPUS.write_text(corpus_page())
    CHIPS.write_text(chips_page())


def corpus_page() -> str:
    """The page of the programs, every one run on every chip with the chip's default switches."""
    return f"""# Published programs, chip by chip

Programs that other projects saw run on the engine (A) or saw refused (R), written anew from their descriptions in
`tests/corpus`, run on the emulated engine with each chip's default switches; `python -m evidence corpus` writes this
page. Results are compared with PyTorch at double precision. "Disputed" are rows that hang on a fact on which sources
contradict each other: its switch is named, [chips.md](chips.md) says who stands for what, and the tests run the row
with either option.

## Accepted

{_programs(ACCEPT)}

## Rejected

{_programs(REJECT)}

## Not programs for the emulated engine

{_table(("row", "what", "why not here"), ((key, *entry) for key, entry in ELSEWHERE.items()))}
"""


def chips_page() -> str:
    """The page of the chips: each row's value, sureness and source, and the switches."""
    chips = [load_chip(name) for name in known_chips()]
    return f"""# What each chip can do

From the data files in `src/anew/chips`; `python -m evidence corpus` writes this page. A value is measured on silicon
(`m`), derived from measurements or carried over from a neighbouring generation (`d`), or claimed without a measurement
(`c`).

{_table(("row", *known_chips(), "source:"), _facts(chips))}

## Operations

{
        _table(
            ("how it reaches the engine", "chip", "operations (source: " + chips[0].row("operations").source + ")"),
            _operations(chips),
        )
    }

## Disputed facts

A switch takes one of two options: `load_chip("m3", {{"fp32": "allow"}})`. What an `allow` lets through,
`anew.chips.check.check` still reports, on the chips where a refusal was seen.

{_table(("switch", "option taken", "refusal seen on", "options and source:", "rows"), _switches(chips))}
"""


def _programs(rows: Sequence[Row]) -> str:
    heading = ("row", "program", "seen on", "source:", *known_chips(), "why")
    return _table(heading, (_program(row) for row in rows))


def _program(row: Row) -> Iterable[str]:
    found = {name: outcomes(row, load_chip(name, row.setting)) for name in known_chips()}
    refusals = [outcome for part in found.values() for outcome in part if outcome.stage != "ok"]
    disputed = row.chips if row.switches else ()
    yield from (row.key, row.program, row.seen, row.source)
    yield from (("disputed: " if name in disputed else "") + _verdict(part) for name, part in found.items())
    yield _why(row, refusals)


def _verdict(found: Sequence[Outcome]) -> str:
    refusal = next((outcome for outcome in found if outcome.stage != "ok"), None)
    return "runs" if refusal is None else STAGES[refusal.stage]


def _why(row: Row, refusals: Sequence[Outcome]) -> str:
    switches = " and ".join(f"`{switch}`" for switch in row.switches)
    first = re.sub(r" \((?:[^()]|\([^()]*\))*\)$", "", refusals[0].sentence) if refusals else ""
    return "; ".join(part for part in (switches, first) if part)


def _facts(chips: Sequence[Chip]) -> Iterable[Sequence[str]]:
    for name in chips[0].rows:
        if name in ("operations", "bit_exact"):
            continue
        rows = [chip.row(name) for chip in chips]
        sources = dict.fromkeys(row.source for row in rows)
        yield name, *(f"{_shown(row.value)} {row.confidence[0]}" for row in rows), "; ".join(sources)


def _operations(chips: Sequence[Chip]) -> Iterable[Sequence[str]]:
    before: dict[str, str] = {}
    for chip in chips:
        for status in ("native", "folded", "bridge", "walled"):
            names = sorted(n for n, s in chip.operations.items() if s == status and before.get(n) != s)
            if names:
                yield status, chip.name, ", ".join(names)
        before = dict(chip.operations)


def _switches(chips: Sequence[Chip]) -> Iterable[Sequence[str]]:
    for name, switch in chips[0].switches.items():
        options = {chip.switches[name].value: [] for chip in chips}
        for chip in chips:
            options[chip.switches[name].value].append(chip.name)
        taken = [value if len(options) == 1 else f"{value} on {', '.join(on)}" for value, on in options.items()]
        sources = "; ".join(f"**{option}**: {source}" for option, source in switch.sources.items())
        yield name, ", ".join(taken), ", ".join(switch.reported_on), sources, ", ".join(switch.corpus)


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _table(heading: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
