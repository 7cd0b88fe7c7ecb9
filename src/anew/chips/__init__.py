"""What each engine generation can do, as data files, every row with its source."""

from anew.chips.chip import Chip, Row, Switch, known_chips, load_chip

__all__ = ["Chip", "Row", "Switch", "known_chips", "load_chip"]
