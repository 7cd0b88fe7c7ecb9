"""The ATen operations that torch takes apart for us: their parts lower, and stay within fp16 where the whole does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import get_decompositions

aten = torch.ops.aten

DECOMPOSITIONS: dict[Any, Callable[..., Any]] = dict(
    get_decompositions(
        [
            aten.leaky_relu,
            aten.leaky_relu_backward,
            aten.hardtanh,
            aten.hardtanh_backward,
            aten.hardsigmoid,
            aten.hardsigmoid_backward,
            aten.hardswish,
            aten.hardswish_backward,
            aten.celu,
            aten.elu,
            aten.elu_backward,
            aten.threshold_backward,
            aten.glu,
            aten.glu_backward,
            aten.softshrink,
            aten.hardshrink,
            aten.baddbmm,
            aten._log_softmax,
            aten._log_softmax_backward_data,
        ]
    )
)
