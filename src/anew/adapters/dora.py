"""What peft's DoRA needs so that Dynamo captures it."""

import functools
from typing import Any

import torch
from torch import nn


@functools.cache
def let_dynamo_capture_dora() -> None:
    """Give Dynamo forms that it can follow of two functions of peft's DoRA.

    One reads a weight, and looks at the name of its type. The weights of a compiled model are fp32 and not quantised,
    for which it returns them as they are. The other empties a module's cache in each forward pass, even where there is
    nothing in it, and by default (``ENABLE_DORA_CACHING`` of peft 0.21) there never is; a layer that is computed again
    may not write.
    """
    from peft.tuners.lora.dora import DoraLinearLayer
    from peft.utils.integrations import dequantize_module_weight

    def weight_of(module: nn.Module) -> nn.Parameter:
        return module.weight  # type: ignore[return-value]

    def clear(self: Any) -> None:
        if self._dora_cache:
            self._dora_cache.clear()

    torch._dynamo.decorators.substitute_in_graph(dequantize_module_weight)(weight_of)
    DoraLinearLayer._cache_clear = clear  # a method, which Dynamo takes no other form of
