"""``anew.compile(model)``: compile a model's repeated layers in place, one program pair for all of them."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn

from anew.errors import UserError
from anew.frontend.options import Options
from anew.frontend.region import Region
from anew.frontend.session import Session, Statistics

_sessions: weakref.WeakKeyDictionary[nn.Module, Session] = weakref.WeakKeyDictionary()


def compile(
    model: nn.Module,
    *,
    device: str = "auto",
    chip: str = "m4",
    numerics: str = "fast",
    strict: bool = False,
    scaling: str = "operands",
) -> nn.Module:
    """Compile the repeated layers of a model for the engine, in place, and return the model.

    The layers of the longest ``nn.ModuleList`` whose members are of one class become regions; they share one
    forward and one backward program for each input shape. Everything else (embedding, last norm, head, loss) stays
    plain PyTorch. Any training loop works: tensors outside the regions are ordinary fp32 tensors, and no gradient
    scaler is needed.

    Args:
        model: a model in float32, such as ``transformers.LlamaForCausalLM``.
        device: ``auto``, ``emulator`` or ``null``.
        chip: whose limits and arithmetic hold, such as ``m4``.
        numerics: ``fast`` or ``exact`` (bit for bit the engine's multiply-accumulate).
        strict: raise when an operation cannot run on the engine, instead of running it on the host.
        scaling: ``operands``; ``none`` is for studying the engine's arithmetic.

    Raises UserError on an unknown option, a model without repeated layers, or parameters that are not float32.
    """
    session = Session(Options(device=device, chip=chip, numerics=numerics, strict=strict, scaling=scaling))
    layers = repeated_layers(model)
    _check_float32(layers)
    config: Any = getattr(model, "config", None)
    if getattr(config, "use_cache", False):
        config.use_cache = False  # a cache object as argument would change the graph from layer to layer

    def backend(module: Any, example_inputs: Any) -> Any:
        return Region(session, module, example_inputs).compile()

    for layer in layers:
        layer.compile(backend=backend, fullgraph=True, dynamic=False)
    _sessions[model] = session
    return model


def statistics(model: nn.Module) -> Statistics:
    """Return what the engine has done for a model compiled with :func:`compile`; raises UserError for any other."""
    if model not in _sessions:
        raise UserError("this model was not compiled by anew.compile")
    return _sessions[model].statistics()


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The members of the longest list of modules of one class; raises UserError when there is none."""
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList)]
    uniform = [layers for layers in lists if layers and len({type(layer) for layer in layers}) == 1]
    if not uniform:
        raise UserError(
            f"{type(model).__name__} has no nn.ModuleList of layers of one class; compile a layer of it with "
            'torch.compile(layer, backend="anew")'
        )
    return max(uniform, key=len)


def _check_float32(layers: list[nn.Module]) -> None:
    for name, parameter in layers[0].named_parameters():
        if parameter.dtype != torch.float32:
            raise UserError(
                f"parameter '{name}' is {parameter.dtype}; load the model in float32, anew keeps fp32 masters"
            )
