"""The options of a compiled model, checked where they enter."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from anew.chips import known_chips, load_chip
from anew.device.emulator.engine import NUMERICS
from anew.device.machine import default_chip
from anew.device.routes import ROUTES
from anew.errors import UserError
from anew.plan import BASE_BITS

DEVICES = ("auto", *ROUTES, "emulator", "null")
SCALINGS = ("operands", "none")
LOSSES = ("auto", "apart")


@dataclass(frozen=True)
class Options:
    """What ``torch.compile(..., backend="anew", options={...})`` and :func:`anew.compile` take.

    Attributes:
        device: ``auto`` (the first of the routes to the engine that works here, else the emulator), a route by name
            (:data:`anew.device.routes.ROUTES`), ``emulator`` or ``null``.
        chip: whose limits and arithmetic hold, as named by :func:`anew.chips.known_chips`; by default this Mac's, or
            ``m4``.
        numerics: ``fast`` or ``exact``, of the emulator.
        strict: raise where an operation cannot run on the engine, instead of running it on the host.
        scaling: ``operands``, or ``none`` to leave operands and cotangents as they are, to study the arithmetic:
            gradients are then noise unless the loss is scaled up, and overflows go unseen.
        switches: what to take for true of the facts on which sources disagree, option by name as in docs/chips.md:
            ``{"rsqrt_after_reduce": "refuse"}``. Kept as sorted pairs.
        loss: of :func:`anew.compile`: ``auto`` takes head and loss of a causal language model to the engine where a
            check allows it; ``apart`` leaves them to PyTorch.
        recheck: on a route to the engine, every so many runs of a program are done again on the emulator, and an error
            is raised when they differ; 0: none.
        worker: let a process of its own drive the device, so that a framework that aborts or hangs does not lose a run.
        base_bits: 16 or 8: linear weights that need no gradient are constants of that many bits, as far as the chip's
            budgets allow; 0: they are inputs of programs like all others.
    """

    device: str = "auto"
    chip: str = field(default_factory=default_chip)
    numerics: str = "fast"
    strict: bool = False
    scaling: str = "operands"
    switches: Mapping[str, str] | tuple[tuple[str, str], ...] = ()
    loss: str = "auto"
    recheck: int = 0
    worker: bool = False
    base_bits: int = 0

    def __post_init__(self) -> None:
        _check("device", self.device, DEVICES)
        _check("numerics", self.numerics, NUMERICS)
        _check("scaling", self.scaling, SCALINGS)
        _check("loss", self.loss, LOSSES)
        for name in ("strict", "worker"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"option '{name}' is True or False, not {getattr(self, name)!r}")
        if isinstance(self.recheck, bool) or not isinstance(self.recheck, int) or self.recheck < 0:
            raise UserError(f"option 'recheck' is a number of runs, or 0 for none, not {self.recheck!r}")
        if isinstance(self.base_bits, bool) or self.base_bits not in BASE_BITS:
            raise UserError(f"option 'base_bits' is one of {', '.join(map(str, BASE_BITS))}, not {self.base_bits!r}")
        _check("chip", self.chip, tuple(known_chips()))
        if not isinstance(self.switches, (Mapping, tuple)):
            raise UserError(f"option 'switches' gives an option by name, not {self.switches!r}")
        object.__setattr__(self, "switches", tuple(sorted(dict(self.switches).items())))
        load_chip(self.chip, dict(self.switches))  # raises for an unknown switch

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Options:
        """Options from a mapping; an unknown name raises UserError with the nearest known one."""
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean '{near[0]}'? " if near else ""
                raise UserError(f"unknown option '{name}'; {hint}known: {', '.join(known)}")
        return cls(**given)


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"option '{name}' is one of {', '.join(known)}, not {value!r}")
