"""What training holds besides its settings, as named tensors and JSON, and back: parameters, optimizer, generator,
gradients that wait for the optimizer, and what the engine's side remembers between steps.

It knows no presets and no loop: any model of PyTorch, plain or compiled by :func:`anew.compile`, and any optimizer
whose state is tensors by parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from anew.errors import AnewError, UserError
from anew.optim import OnEngine, settle
from anew.train.checkpoint import Checkpoint

#: The files of a checkpoint that hold a snapshot, without their suffixes.
MODEL, OPTIMIZER, GRADIENTS, RANDOM, ENGINE = "model", "optimizer", "gradients", "random", "engine"


def take(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, trained_only: bool = False
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return tensors and documents for :meth:`anew.train.checkpoint.Checkpoints.save`.

    Tensors are the live ones, no copies: parameters and persistent buffers by name (tied ones once), the optimizer's as
    ``PARAMETER.KEY``, gradients that were accumulated and not used yet, and the state of PyTorch's default generator.
    ``trained_only`` leaves out what needs no gradient, such as the base of an adapter. Raises AnewError for an
    optimizer whose state is not tensors by parameter.
    """
    if isinstance(optimizer, OnEngine):
        optimizer.to_grads()
    tensors = {
        MODEL: {name: x for name, x in _named(model).items() if x.requires_grad or not trained_only},
        OPTIMIZER: _of_optimizer(model, optimizer),
        GRADIENTS: {name: x.grad for name, x in _named(model).items() if x.grad is not None},
        RANDOM: {"torch": torch.get_rng_state()},
    }
    return tensors, {ENGINE: _of_engine(model)}


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Bring a snapshot back into a model and an optimizer made like those it was taken from.

    A model that was compiled must be compiled again before. Raises UserError that names the tensor which is missing,
    unknown or of another shape; then nothing has changed.
    """
    weights, named = checkpoint.tensors(MODEL), _named(model)
    _check_model(weights, named, checkpoint)
    state, gradients = checkpoint.tensors(OPTIMIZER), checkpoint.tensors(GRADIENTS)
    _check_optimizer(state, named, checkpoint)
    random = checkpoint.tensors(RANDOM)
    if "torch" not in random:
        raise UserError(f"{checkpoint.path} holds no state of PyTorch's random numbers: it is of something else")
    settle(optimizer)
    with torch.no_grad():
        for name, x in weights.items():
            named[name].copy_(x)
    optimizer.state.clear()
    for name, x in state.items():
        parameter, _, key = name.rpartition(".")
        optimizer.state[named[parameter]][key] = x.clone()
    for name, gradient in gradients.items():
        named[name].grad = gradient.clone()
    torch.set_rng_state(random["torch"].clone())
    _restore_engine(model, checkpoint.document(ENGINE))


def _named(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, each once."""
    names: dict[int, tuple[str, Tensor]] = {}
    for name, x in model.state_dict(keep_vars=True).items():
        names.setdefault(id(x), (name, x))
    return dict(names.values())


def _of_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = {id(x): name for name, x in _named(model).items()}
    found = {}
    for parameter, state in optimizer.state.items():
        for key, x in state.items():
            if id(parameter) not in names or not isinstance(x, Tensor):
                raise AnewError(f"{type(optimizer).__name__} keeps '{key}', which is no tensor of a parameter")
            found[f"{names[id(parameter)]}.{key}"] = x
    return found


def _check_model(weights: Mapping[str, Tensor], named: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    for name, x in named.items():
        if name not in weights and x.requires_grad:
            raise UserError(f"{checkpoint.path} does not fit the model: it has no '{name}'")
    for name, x in weights.items():
        if name not in named:
            raise UserError(f"{checkpoint.path} does not fit the model, which has no '{name}'")
        if (x.shape, x.dtype) != (named[name].shape, named[name].dtype):
            raise UserError(
                f"{checkpoint.path} does not fit the model: '{name}' is {_kind(x)} there, {_kind(named[name])} here"
            )


def _check_optimizer(state: Mapping[str, Tensor], named: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    for name, x in state.items():
        parameter = named.get(name.rpartition(".")[0])
        if parameter is None or (x.dim() and x.shape != parameter.shape):
            raise UserError(f"{checkpoint.path} does not fit the model: its optimizer has '{name}', {_kind(x)}")


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"


def _of_engine(model: nn.Module) -> dict[str, Any] | None:
    from anew.frontend.model import options_of
    from anew.frontend.state import state_dict

    return None if options_of(model) is None else state_dict(model)


def _restore_engine(model: nn.Module, state: dict[str, Any] | None) -> None:
    from anew.frontend.model import options_of
    from anew.frontend.state import load_state_dict

    if state is not None and options_of(model) is not None:  # operand scales mean nothing to plain PyTorch
        load_state_dict(model, state)
