"""The data files of the chips: every fact has a source, later generations follow earlier ones, switches decide."""

import math

import pytest

from anew.chips import Chip, known_chips, load_chip
from anew.errors import UserError


@pytest.fixture(params=known_chips())
def chip(request) -> Chip:
    return load_chip(request.param)


def test_five_generations():
    assert known_chips() == ["m1", "m2", "m3", "m4", "m5"]


def test_every_row_names_its_source_and_how_sure_it_is(chip):
    for row in chip.rows.values():
        assert len(row.source) > 5
        assert row.confidence in ("measured", "derived", "claimed")
        assert row.name in ("operations", *Chip.__dataclass_fields__)


def test_every_switch_has_a_source_for_each_option_and_takes_one(chip):
    for switch in chip.switches.values():
        assert len(switch.sources) == 2
        assert switch.value in switch.sources
        assert all(len(source) > 5 for source in switch.sources.values())
        assert set(switch.reported_on) <= set(known_chips())
        assert switch.corpus


def test_every_operation_has_one_status(chip):
    assert set(chip.operations.values()) == {"native", "folded", "bridge", "walled"}
    assert set(chip.operations) == set(load_chip("m1").operations)


def test_what_changed_between_generations():
    m1, m2, m3, m4, m5 = (load_chip(name) for name in known_chips())
    assert [c.max_axis for c in (m1, m2, m3, m4, m5)] == [16384, 16384, 16384, 65536, 65536]
    assert [c.slice_limit for c in (m1, m2, m3, m4, m5)] == [4094.0, 4094.0, math.inf, math.inf, math.inf]
    assert [c.convolution for c in (m3, m4, m5)] == ["direct", "direct", "winograd-f23-width"]
    assert [c.operations["cos"] for c in (m1, m2, m3)] == ["bridge", "bridge", "native"]
    assert [c.operations["topk"] for c in (m1, m2)] == ["walled", "native"]


def test_a_row_measured_elsewhere_is_derived():
    assert [load_chip(c).row("max_axis").confidence for c in known_chips()] == [
        "measured", "derived", "measured", "claimed", "claimed",
    ]  # fmt: skip
    assert "ANEForge" in load_chip("m3").row("matmul").source
    with pytest.raises(UserError, match="chip m3 has no row 'colour'"):
        load_chip("m3").row("colour")


def test_a_switch_is_set_by_name():
    assert not load_chip("m4").refuses("gqa")
    other = load_chip("m4", {"gqa": "refuse"})
    assert other.refuses("gqa")
    assert other.switches["gqa"].sources == load_chip("m4").switches["gqa"].sources
    with pytest.raises(UserError, match="unknown switch 'gqs'; known: row_pitch"):
        load_chip("m4", {"gqs": "refuse"})
    with pytest.raises(UserError, match="switch 'gqa' is one of allow, refuse, not 'perhaps'"):
        load_chip("m4", {"gqa": "perhaps"})


def test_arithmetic_class():
    assert load_chip("m5").arithmetic("matmul") == "bit-exact"
    assert load_chip("m5").arithmetic("exp") == "calibrated"
