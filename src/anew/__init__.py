"""anew: train and fine-tune PyTorch language models on the Apple Neural Engine, or on an emulated one.

``anew.compile(model)`` compiles a model's layers in place; ``torch.compile(layer, backend="anew")`` one layer.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

from anew.errors import AnewError, UserError

if TYPE_CHECKING:
    from anew.energy import measure
    from anew.frontend.explain import explain
    from anew.frontend.loss.function import linear_cross_entropy
    from anew.frontend.model import check_baked, compile, statistics
    from anew.frontend.state import load_state_dict, state_dict

__version__ = metadata.version("anew")
__all__ = [
    "AnewError",
    "UserError",
    "__version__",
    "check_baked",
    "compile",
    "explain",
    "linear_cross_entropy",
    "load_state_dict",
    "measure",
    "state_dict",
    "statistics",
]


def __getattr__(name: str) -> Any:
    """Import PyTorch only when it is needed: ``anew --help`` answers at once."""
    if name in ("check_baked", "compile", "statistics"):
        from anew.frontend import model

        return getattr(model, name)
    if name in ("load_state_dict", "state_dict"):
        from anew.frontend import state

        return getattr(state, name)
    if name == "measure":
        from anew.energy import measure

        return measure
    if name == "explain":
        from anew.frontend.explain import explain

        return explain
    if name == "linear_cross_entropy":
        from anew.frontend.loss.function import linear_cross_entropy

        return linear_cross_entropy
    raise AttributeError(f"module 'anew' has no attribute '{name}'")
