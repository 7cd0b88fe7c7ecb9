"""Several processes that train one model: they agree on operand scales.

``DistributedDataParallel`` gives every process the same gradients, whichever scales its regions ran with: a region that
repeats a run does so before gradients travel. Scales that are equal as well make a step a function of the weights and
the data alone, so that the state which one process saves resumes all of them to the bit.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn

from anew.frontend.model import session_of
from anew.frontend.scale_store import States


def share_scales(model: nn.Module) -> None:
    """Give a compiled model in every process of the default group the same operand scales; call it after each step.

    Of each operand it takes the smallest factor, which is what one process that saw all the data would have chosen.
    All processes must call it. Nothing happens where there is one process. Raises UserError for a model that was not
    compiled.
    """
    scales = session_of(model).scales
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    found: list[States] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, scales.state_dict(model.named_parameters()))
    scales.load_state_dict(model.named_parameters(), merged(found))


def merged(found: list[States]) -> States:
    """The states that fit every one of several processes; one that a process has not confirmed yet does not count."""
    result: States = {}
    for states in found:
        for name, programs in states.items():
            into = result.setdefault(name, {})
            for program, state in programs.items():
                into[program] = _careful(into[program], state) if program in into else state
    return result


def _careful(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The state that fits what either of two was chosen for."""
    if a["calibrated"] != b["calibrated"]:
        return a if a["calibrated"] else b
    return {
        "exponents": [min(pair) for pair in zip(a["exponents"], b["exponents"], strict=True)],
        "cotangent": min(a["cotangent"], b["cotangent"]),
        "calibrated": a["calibrated"],
    }
