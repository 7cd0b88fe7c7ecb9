"""The ``torch.compile`` backend named ``anew``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.fx import GraphModule

from anew.frontend.options import Options
from anew.frontend.region import Region
from anew.frontend.session import Session, session_for


def anew(
    module: GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Compile a captured graph for the engine.

    Used by name: ``torch.compile(layer, backend="anew", options={"numerics": "exact"})``. Options are those of
    :class:`anew.frontend.options.Options`; an unknown one raises UserError.
    """
    return backend_in(session_for(Options.parse(options or {})))(module, example_inputs)


@functools.cache
def backend_in(session: Session) -> Callable[..., Any]:
    """The backend that compiles in a session: one function, because Dynamo keeps what it compiled by backend."""

    def backend(module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return Region(session, module, example_inputs).compile()

    return backend
