"""What peft's DoRA needs so that Dynamo captures it."""

import functools

import torch
from torch import nn


@functools.cache
def let_dynamo_capture_dora() -> None:
    """Give Dynamo a form that it can follow of the function by which peft's DoRA reads a weight.

    That function looks at the name of the weight's type. The weights of a compiled model are fp32 and not quantised,
    for which it returns them as they are.
    """
    from peft.utils.integrations import dequantize_module_weight

    def weight_of(module: nn.Module) -> nn.Parameter:
        return module.weight  # type: ignore[return-value]

    torch._dynamo.decorators.substitute_in_graph(dequantize_module_weight)(weight_of)
