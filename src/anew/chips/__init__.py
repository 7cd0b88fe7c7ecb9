"""What each engine generation can do, as data files, every row with its source; and a checker of MIL against it."""

from anew.chips.check import check, check_op, check_text, refused
from anew.chips.chip import Chip, Row, Switch, known_chips, load_chip
from anew.chips.rules import extents
from anew.chips.violation import Violation

__all__ = [
    "Chip",
    "Row",
    "Switch",
    "Violation",
    "check",
    "check_op",
    "check_text",
    "extents",
    "known_chips",
    "load_chip",
    "refused",
]
