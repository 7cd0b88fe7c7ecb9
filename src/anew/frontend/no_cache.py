"""A plain forward of a compiled model builds no cache, which training has no use for.

transformers builds one unless ``use_cache`` says otherwise, in the call or in the configuration. The configuration is
the user's: ``save_pretrained`` writes it. So the calls say it.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn


def without_cache(model: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Make calls of a model, and of the models in it, mean ``use_cache=False`` where they say nothing.

    Calls of the compiled ``layers`` and of what is in them stay as they are. As with what compiles a layer, copies and
    pickles do not have it.
    """
    inside = {id(part) for layer in layers for part in layer.modules()}
    for module in model.modules():
        parameters = list(inspect.signature(module.forward).parameters)
        if id(module) not in inside and hasattr(module, "config") and "use_cache" in parameters:
            module._compiled_call_impl = _call(module, parameters.index("use_cache"))


def _call(module: nn.Module, position: int) -> Any:
    """What calls a module that takes ``use_cache`` at a position; it does not keep the module alive."""
    reference = weakref.ref(module)

    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) <= position and kwargs.get("use_cache") is None:
            kwargs["use_cache"] = False
        called: Any = reference()
        return called._call_impl(*args, **kwargs)

    return call
