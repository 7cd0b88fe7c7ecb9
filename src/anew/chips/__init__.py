"""What each engine generation can do, as data files, every row with its source.

:mod:`anew.chips.check` checks MIL against a chip; it stands apart, as it loads PyTorch and the data files do not.
"""

from anew.chips.chip import Chip, Row, Switch, known_chips, load_chip
from anew.chips.report import switches_from_report

__all__ = ["Chip", "Row", "Switch", "known_chips", "load_chip", "switches_from_report"]
