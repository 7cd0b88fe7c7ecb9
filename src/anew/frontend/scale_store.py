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
        self._plain: dict[str, frozenset[int]] = {}
        self._no_weight = torch.empty(0)

    def state(self, weight: Tensor | None, key: str, plan: Plan) -> ScaleState:
        """The state of the instance that ``weight`` belongs to, in the program with that key."""
        owner, key = self._owner(weight, key)
        states = self._states.get(owner, dict)
        if key not in states:
            saved = self._waiting.get(owner, dict).pop(key, {})
            states[key] = self.make(plan, **saved)
        return states[key]

    def make(self, plan: Plan, **saved: Any) -> ScaleState:
        """A new state, or a saved one."""
        return ScaleState(plan.scales, **saved)

    def plain(self, key: str) -> frozenset[int]:
        """The products of the program with that key that need no scales in any instance that has measured."""
        if key not in self._plain:
            self._plain[key] = self._agreed(key)
        return self._plain[key]

    def states(self) -> list[ScaleState]:
        """The states of all instances that have run."""
        return [state for states in self._states.values() for state in states.values()]

    def settled(self, key: str) -> None:
        """Say that an instance of the program with that key has measured."""
        self._plain.pop(key, None)

    def _agreed(self, key: str) -> frozenset[int]:
        live = [state.plain for states in self._states.values() for name, state in states.items() if _of(name, key)]
        kept = [
            saved.get("plain") for states in self._waiting.values() for name, saved in states.items() if _of(name, key)
        ]
        known = [frozenset(plain) for plain in (*live, *kept) if plain is not None]
        return frozenset.intersection(*known) if known else frozenset()

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
        self._plain.clear()
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


def _of(name: str, key: str) -> bool:
    """Whether a state's name is that of the program with a key, or of a part of a weight in it."""
    return name == key or name.startswith(f"{key} ")
