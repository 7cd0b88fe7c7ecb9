"""``anew.compile(model)``: compile a model's repeated layers in place, one program pair for all of them."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from anew.device.machine import default_chip
from anew.errors import UserError
from anew.frontend.layer_call import compile_layers
from anew.frontend.layers import repeated_layers
from anew.frontend.loss.causal_lm import attach, verdict_of
from anew.frontend.no_cache import without_cache
from anew.frontend.options import Options
from anew.frontend.session import Session, Statistics, session_for

#: The options each model was compiled with, and the statistics of their session at that time.
_compiled: weakref.WeakKeyDictionary[nn.Module, tuple[Options, Statistics]] = weakref.WeakKeyDictionary()
#: What models were compiled in.
_sessions: weakref.WeakKeyDictionary[nn.Module, Session] = weakref.WeakKeyDictionary()


def compile(
    model: nn.Module,
    *,
    device: str = "auto",
    chip: str | None = None,
    numerics: str = "fast",
    strict: bool = False,
    scaling: str = "operands",
    loss: str = "auto",
    switches: Mapping[str, str] | None = None,
    recheck: int = 0,
    worker: bool = False,
    base_bits: int = 0,
) -> nn.Module:
    """Compile the repeated layers of a model for the engine, in place, and return the model.

    The members of the outermost lists of layers (:func:`anew.frontend.layers.repeated_layers`) become regions. Layers
    whose graphs are equal share programs: a forward and a backward one for each input shape, and one more to evaluate;
    of each there is a lean one as well from the fourth call on (:mod:`anew.frontend.segment`).
    Layers that differ in configuration (windows of attention, say) have their own, and so has the first layer over a
    frozen embedding, whose input needs no gradient. Head and loss of a causal language model of transformers called
    with ``labels`` become the loss region, if a check on the first batch finds the cross-entropy of the next token;
    ``outputs.logits`` is then computed when it is read. Everything else (embedding, last norm) stays plain PyTorch.
    Any training loop works: tensors outside the regions are ordinary fp32 tensors, and no gradient scaler is needed.
    Adapters may be put on before or after. A deep copy of the model, or one loaded from a pickle, is a plain model
    again.

    ``model.generate`` of transformers works as before: see :mod:`anew.frontend.cache`. A plain forward returns no
    cache unless it is called with ``use_cache=True``.

    Args:
        model: a model in float32, such as ``transformers.LlamaForCausalLM``.
        device: ``auto`` (the first route to the engine that works here, else the emulator; which one and why is in
            :func:`statistics`), ``e5rt``, ``emulator`` or ``null``.
        chip: whose limits and arithmetic hold, such as ``m4``; by default this Mac's, or ``m4``.
        numerics: ``fast`` or ``exact`` (bit for bit the engine's multiply-accumulate).
        strict: raise when an operation cannot run on the engine, instead of running it on the host.
        scaling: ``operands``; ``none`` is for studying the engine's arithmetic.
        loss: ``auto``, or ``apart`` to leave head and loss to PyTorch. What came of it is in :func:`statistics`.
        switches: what to take for true of disputed facts, option by name as in docs/chips.md; those that a device
            itself has decided are in a report of ``anew doctor --probe``: :func:`anew.chips.switches_from_report`.
        recheck: on a route to the engine, every so many runs are done again on the emulator and compared; 0: none.
        worker: let a process of its own drive the device: one that aborts or hangs is replaced and the call repeated.
        base_bits: 16 or 8: linear weights that need no gradient, such as the base of a LoRA adapter, become constants
            of that many bits once their layers have measured (:mod:`anew.frontend.baking`); 0: they are inputs.

    Raises UserError on an unknown option, a device that is not available, a model without repeated layers, parameters
    that are not float32, or attention that transformers hands to kernels of other devices.
    """
    options = Options(
        device=device,
        chip=chip or default_chip(),
        numerics=numerics,
        strict=strict,
        scaling=scaling,
        loss=loss,
        switches=switches or {},
        recheck=recheck,
        worker=worker,
        base_bits=base_bits,
    )
    session = session_for(options)
    before = session.statistics()
    compile_in(model, session)
    _compiled[model] = options, before
    return model


def compile_in(model: nn.Module, session: Session) -> nn.Module:
    """Compile the repeated layers of a model in a session, in place; the checks are those of :func:`compile`."""
    layers = repeated_layers(model)
    _check_float32(layers)
    _check_attention(getattr(model, "config", None))
    without_cache(model, layers)
    compile_layers(session, layers)
    if session.options.loss == "auto":
        attach(model, session)
    _sessions[model] = session
    return model


def options_of(model: nn.Module) -> Options | None:
    """The options a model, or what it wraps, was compiled with by :func:`compile`; None for any other model."""
    found = _record(model)
    return found[0] if found else None


def session_of(model: nn.Module) -> Session:
    """The session that a model, or what it wraps, was compiled in; UserError for one that was not compiled."""
    found = next((_sessions[module] for module in model.modules() if module in _sessions), None)
    return found or session_for(_known(model)[0])


def statistics(model: nn.Module) -> Statistics:
    """Return what the engine has done since a model, or what it wraps, was compiled with :func:`compile`.

    Models compiled with equal options share an engine, so what another of them does in the meantime counts too.

    Raises UserError for a model that was not compiled.
    """
    options, before = _known(model)
    return replace(session_for(options).statistics().since(before), loss=verdict_of(model))


def check_baked(model: nn.Module) -> None:
    """Compare every frozen weight that is a constant of a program with what it was when the program was compiled.

    Those that changed, by whatever means, are inputs again from the next call on, and constants again after that;
    :attr:`Statistics.stale` counts them. Calls look by themselves: each at storage, version, samples and a tenth of
    every weight. Raises UserError for a model that was not compiled.
    """
    session_of(model).check_baked()


def _known(model: nn.Module) -> tuple[Options, Statistics]:
    found = _record(model)
    if found is None:
        raise UserError("this model was not compiled by anew.compile")
    return found


def _record(model: nn.Module) -> tuple[Options, Statistics] | None:
    return next((_compiled[module] for module in model.modules() if module in _compiled), None)


def _check_attention(config: Any) -> None:
    """Refuse attention that transformers hands to kernels of other devices."""
    form = getattr(config, "_attn_implementation", None) or ""
    if "flex" in form or "flash" in form:
        raise UserError(f"attn_implementation '{form}' is made for GPUs; load the model with 'sdpa' or 'eager'")


def _check_float32(layers: list[nn.Module]) -> None:
    for name, parameter in (named for layer in layers for named in layer.named_parameters()):
        if parameter.dtype != torch.float32:
            raise UserError(
                f"parameter '{name}' is {parameter.dtype}; load the model in float32, anew keeps fp32 masters"
            )
