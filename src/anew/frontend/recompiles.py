"""Stops before Dynamo's recompile limit: past it PyTorch would run layers eagerly, with no more than a log line."""

from __future__ import annotations

import torch
from torch._dynamo.utils import get_metrics_context
from torch._guards import CompileContext

from anew.errors import UserError


def check_recompiles() -> None:
    """Called while Dynamo compiles a graph.

    Raises UserError naming the guard that failed when this is the last graph that Dynamo keeps of a function: the
    next one would not reach a backend at all.
    """
    compile_id = CompileContext.current_compile_id()
    count = 0 if compile_id is None or compile_id.frame_compile_id is None else compile_id.frame_compile_id
    limit = torch._dynamo.config.recompile_limit
    if 0 < count >= limit - 1:
        reason = get_metrics_context()._metrics.get("recompile_reason")
        raise UserError(
            f"graph {count + 1} of one function, of {limit} that PyTorch takes before it runs the function eagerly; "
            f"the guard that failed last: {reason}. Keep what it names from changing, or compile the model with "
            "anew.compile, or raise torch._dynamo.config.recompile_limit"
        )
