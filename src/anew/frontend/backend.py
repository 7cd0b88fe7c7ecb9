"""The ``torch.compile`` backend named ``anew``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.fx import GraphModule

from anew.frontend.options import Options
from anew.frontend.recompiles import check_recompiles
from anew.frontend.session import session_for
from anew.frontend.whole_model import by_layers


def anew(
    module: GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Compile a captured graph for the engine, at its first call.

    Used by name: ``torch.compile(model, backend="anew", options={"numerics": "exact"})``, on a layer, or on a model:
    then its repeated layers become regions and the rest stays plain PyTorch. Options are those of
    :class:`anew.frontend.options.Options`; an unknown one raises UserError.
    """
    session = session_for(Options.parse(options or {}))
    check_recompiles()
    return by_layers(session, module)
