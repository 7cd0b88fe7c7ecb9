"""The operand scales of a session: one state for each program and each instance that runs it.

An instance is known by its first weight; programs without weights have one state for all. Programs are compiled on
first use, so states that come from a checkpoint wait here until their program runs.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from anew.errors import UserError
from anew.frontend.instances import ByTensor
from anew.frontend.scales import ScaleState
from anew.plan import Plan

#: A plan's name without the number of its region, which depends on what was compiled before.
_NUMBERED = re.compile(r"^region \d+ ")
#: The name under which states of programs without weights are kept.
NO_WEIGHT = ""

States = dict[str, dict[str, dict[str, Any]]]


def program_key(plan: Plan) -> str:
    """What a program is known by in every process: its direction, and a digest of its text and bindings."""
    return f"{_NUMBERED.sub('', plan.name)} {plan.digest}"


class ScaleStore:
    """Scale states by weight and program, made on first use."""

    def __init__(self) -> None:
        self._states: ByTensor[dict[str, ScaleState]] = ByTensor()
        self._waiting: ByTensor[dict[str, dict[str, Any]]] = ByTensor()
        self._parts: ByTensor[tuple[weakref.ref[Tensor], str] | None] = ByTensor()
        self._no_weight = torch.empty(0)

    def state(self, weight: Tensor | None, key: str, plan: Plan) -> ScaleState:
        """The state of the instance that ``weight`` belongs to, in the program with that key."""
        owner, key = self._owner(weight, key)
        states = self._states.get(owner, dict)
        if key not in states:
            saved = self._waiting.get(owner, dict).pop(key, {})
            states[key] = ScaleState(plan.scales, **saved)
        return states[key]

    def name_part(self, part: Tensor, whole: Tensor, name: str) -> None:
        """Say that ``part`` is a view of the weight ``whole``, whose states it has under ``name``."""
        self._parts.set(part, (weakref.ref(whole), name))

    def state_dict(self, named: Iterable[tuple[str, Tensor]]) -> States:
        """The states of these weights, and those of programs without weights: by name and program, as JSON values."""
        found: States = {}
        for name, weight in (*named, (NO_WEIGHT, self._no_weight)):
            states = dict(self._waiting.get(weight, dict))
            states |= {key: state.state_dict() for key, state in self._states.get(weight, dict).items()}
            if states:
                found[name] = states
        return found

    def load_state_dict(self, named: Iterable[tuple[str, Tensor]], states: States) -> None:
        """Replace the states of these weights by saved ones; raises UserError for a name that none of them has."""
        weights = {**dict(named), NO_WEIGHT: self._no_weight}
        for name in states.keys() - weights.keys():
            raise UserError(f"the saved operand scales are of another model: it has no parameter '{name}'")
        for name, weight in weights.items():
            self._states.set(weight, {})
            self._waiting.set(weight, {key: dict(saved) for key, saved in states.get(name, {}).items()})

    def _owner(self, weight: Tensor | None, key: str) -> tuple[Tensor, str]:
        if weight is None:
            return self._no_weight, key
        part = self._parts.get(weight, lambda: None)
        whole = part[0]() if part else None
        return (weight, key) if part is None or whole is None else (whole, f"{key} {part[1]}")
