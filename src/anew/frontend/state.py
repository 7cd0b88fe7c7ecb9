"""What the engine's side of a model remembers between steps, for checkpoints.

These are the operand scales of each layer and direction, and whether the loss region is used. With them a resumed run
computes the same bits; without them it would begin with calibrating runs and another check of the loss.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from anew.frontend.loss.causal_lm import set_verdict, verdict_of
from anew.frontend.loss.check import LossVerdict
from anew.frontend.model import session_of


def state_dict(model: nn.Module) -> dict[str, Any]:
    """Return the state of a model compiled by :func:`anew.compile`, as JSON values; parameters are known by name.

    Raises UserError for a model that was not compiled.
    """
    verdict = verdict_of(model)
    return {
        "scales": session_of(model).scales.state_dict(model.named_parameters()),
        "loss": None if verdict is None else dataclasses.asdict(verdict),
    }


def load_state_dict(model: nn.Module, state: dict[str, Any]) -> None:
    """Give a compiled model the state that :func:`state_dict` returned for one with equal names and options.

    No calibrating run happens where a state fits; programs that it does not know calibrate as on first use. Raises
    UserError for a model that was not compiled, and for a parameter that it does not have.
    """
    session_of(model).scales.load_state_dict(model.named_parameters(), state["scales"])
    if state["loss"] is not None:
        set_verdict(model, LossVerdict(**state["loss"]))
