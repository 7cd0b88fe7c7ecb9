"""What the step of a run would take on each chip with published rates: the rows of its record and report, projected."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from anew.errors import reason_of
from anew.estimate.capture import count_step
from anew.estimate.counted import Counted, Setting
from anew.estimate.step import project
from anew.models.quiet import quiet
from anew.projection.machine import read_machine
from anew.projection.rates import chip_names, read_rates

_counted: dict[tuple[str, str], Counted] = {}
"""What this process has counted already, by chip and setting."""


def projection(setting: Setting, chip: str, device: str) -> dict[str, Any]:
    """Return one batch, with the step of the optimizer behind it, as run.json keeps it: plain data, all projected.

    ``chip`` is the one that the run's programs are compiled for; they are counted once and priced at the rates of
    every chip. ``rows`` and ``tokens`` (of a row) are those of the batch; of each chip ``seconds``, between ``low`` and
    ``high`` in four of five cases, and ``joules`` (none for waiting: a lower bound); ``extrapolated`` says what no
    measurement stands behind. A model that cannot be estimated, and a run in plain PyTorch (``device`` is cpu), which
    has no programs, have a ``reason`` instead of these.
    """
    found = {"compiled_for": chip, "rows": setting.batch_size, "tokens": setting.seq_len}
    if device == "cpu":
        return {**found, "reason": "it ran in plain PyTorch, without programs for a chip; anew estimate counts them"}
    try:
        return {**found, **_priced(setting, chip)}
    except Exception as error:  # whatever a model raises: the run it is projected for has ended well
        return {**found, "reason": str(reason_of(error) or error).strip().partition("\n")[0] or type(error).__name__}


def _priced(setting: Setting, chip: str) -> dict[str, Any]:
    counted = _count(setting, chip)
    steps = [project(setting, counted, name, read_rates(name), read_machine(name)) for name in chip_names()]
    rows = [
        {"chip": s.chip, "seconds": s.seconds, "low": s.low, "high": s.high, "joules": sum(s.joules.values())}
        for s in steps
    ]
    return {"chips": rows, "extrapolated": list(steps[0].extrapolated)}


def _count(setting: Setting, chip: str) -> Counted:
    key = chip, repr(setting)
    if key not in _counted:
        with quiet(), warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            _counted[key] = count_step(setting, chip)
    return _counted[key]
