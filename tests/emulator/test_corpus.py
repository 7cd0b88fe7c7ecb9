"""Every published program that ran on silicon runs, every one that was refused is refused with its reason, a chip.

Where sources disagree, the switch decides: either option is tried.
"""

import re

import pytest

from anew.chips import known_chips, load_chip
from evidence import corpus
from tests.corpus.accept import ACCEPT
from tests.corpus.case import Row, number, option, outcomes
from tests.corpus.reject import ELSEWHERE, REJECT

ROWS = {row.key: row for row in (*ACCEPT, *REJECT)}
PLAIN = [row.key for row in ROWS.values() if not row.switches]
DISPUTED = [row.key for row in ROWS.values() if row.switches]
HANGING = [(row.key, switch) for row in ROWS.values() for switch in row.switches]

chips = pytest.mark.parametrize("name", known_chips())


def accepting(row: Row) -> dict[str, str]:
    """The row's switches, so that nothing in dispute refuses it."""
    return {**row.setting, **{s: option(s, refusing=False) for s in row.switches}}


def expect(row: Row, name: str, stage: str, switches: dict[str, str], reason: str) -> None:
    """Every case of the row ends at a stage, and a refusal gives the reason."""
    for outcome in outcomes(row, load_chip(name, switches)):
        assert outcome.stage == stage, outcome
        assert stage == "ok" or re.search(reason, outcome.sentence), outcome


@chips
@pytest.mark.parametrize("key", PLAIN)
def test_an_undisputed_row(key, name):
    row = ROWS[key]
    expect(row, name, row.stage if name in row.chips else "ok", row.setting, row.reason)


@chips
@pytest.mark.parametrize("key", [key for key in DISPUTED if ROWS[key].runs_if_allowed])
def test_a_disputed_row_where_its_switches_allow(key, name):
    row = ROWS[key]
    accepted = row.stage != "ok" or name in row.chips
    expect(row, name, "ok" if accepted else "compile", accepting(row), row.reason)


@chips
@pytest.mark.parametrize(("key", "switch"), HANGING)
def test_a_disputed_row_where_a_switch_refuses(key, switch, name):
    row = ROWS[key]
    found = outcomes(row, load_chip(name, accepting(row) | {switch: option(switch, refusing=True)}))
    refusals = [outcome for outcome in found if outcome.stage != "ok"]
    assert refusals
    if row.stage != "ok":
        assert [refusal.stage for refusal in refusals] == [row.stage] * len(found)
    if name not in row.chips:
        return
    absent = "|does not exist on|cannot be reached from MIL on" if not row.runs_if_allowed else ""
    reason = row.reason if row.stage != "ok" and row.reason else rf"\(disputed, switch '{switch}'; .+\){absent}"
    assert all(re.search(reason, refusal.sentence) for refusal in refusals)


def test_the_whole_list_is_there():
    listed = {number(key) for key in ROWS} | set(ELSEWHERE)
    assert listed == {f"A{i}" for i in range(1, 22)} | {f"R{i}" for i in range(1, 28)}


def test_switches_name_the_rows_that_hang_on_them():
    for name, switch in load_chip("m4").switches.items():
        assert set(switch.corpus) == {number(key) for key, hanging in HANGING if hanging == name}, name


def test_the_pages_show_these_outcomes():
    assert corpus.CORPUS.read_text() == corpus.corpus_page(), "run: python -m evidence corpus"
    assert corpus.CHIPS.read_text() == corpus.chips_page(), "run: python -m evidence corpus"
