"""The ``torch.compile`` backend named ``anew``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.fx import GraphModule

from anew.frontend.options import Options
from anew.frontend.region import Region
from anew.frontend.session import Session


@functools.cache
def session_for(options: Options) -> Session:
    """The session that ``torch.compile(backend="anew")`` uses for these options; one a process and set of options."""
    return Session(options)


def anew(
    module: GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Compile a captured graph for the engine.

    Used by name: ``torch.compile(layer, backend="anew", options={"numerics": "exact"})``. Options are those of
    :class:`anew.frontend.options.Options`; an unknown one raises UserError.
    """
    session = session_for(Options.parse(options or {}))
    return Region(session, module, example_inputs).compile()
