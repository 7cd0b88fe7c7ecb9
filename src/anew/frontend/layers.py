"""Finds the repeated layers of a model: what ``anew.compile`` makes regions of."""

from __future__ import annotations

from torch import nn

from anew.errors import UserError


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists of layers, in the model's order.

    A list of layers is an ``nn.ModuleList`` or ``nn.Sequential`` whose members are of one class, each with modules
    of its own (or a class of the user's: a list of ``nn.Linear`` is part of something larger). Both stacks of an
    encoder-decoder are taken; lists inside a layer, such as its experts, belong to the layer.

    Raises UserError when there is none.
    """
    found = _found(model)
    if not found:
        raise UserError(
            f"{type(model).__name__} has no nn.ModuleList or nn.Sequential of layers of one class; compile a layer of "
            'it with torch.compile(layer, backend="anew")'
        )
    return list(found.values())


def has_repeated_layers(model: nn.Module) -> bool:
    """Whether :func:`repeated_layers` finds layers in a model."""
    return bool(_found(model))


def _found(model: nn.Module) -> dict[int, nn.Module]:
    found: dict[int, nn.Module] = {}
    _collect(model, found)
    return found


def _collect(module: nn.Module, found: dict[int, nn.Module]) -> None:
    if _is_list_of_layers(module):
        found.update((id(layer), layer) for layer in module.children())
        return
    for child in module.children():
        _collect(child, found)


def _is_list_of_layers(module: nn.Module) -> bool:
    members = list(module.children())
    return (
        isinstance(module, (nn.ModuleList, nn.Sequential))
        and len({type(member) for member in members}) == 1
        and _is_layer(members[0])
    )


def _is_layer(module: nn.Module) -> bool:
    container = isinstance(module, (nn.ModuleList, nn.Sequential, nn.ModuleDict))
    leaf = type(module).__module__.startswith("torch.nn.") and not list(module.children())
    return not container and not leaf
