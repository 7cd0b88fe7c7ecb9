"""Which part of a model computes where: the layers on the engine, the rest on the host, in the model's order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import nn

from anew.frontend.layers import has_repeated_layers, repeated_layers

ENGINE, HOST = "engine", "host"


@dataclass(frozen=True)
class Part:
    """One part of a model, or several of one kind in a row.

    Attributes:
        name: the module's, or those of the first and the last.
        kind: its class. count: how many there are. where: ``engine`` or ``host``.
        parameters: of all of them; one that two parts share counts in both.
    """

    name: str
    kind: str
    count: int
    where: str
    parameters: int


def parts(model: nn.Module, counters: Any) -> list[Part]:
    """Return the parts of a model that have parameters.

    Args:
        model: as :func:`anew.train.device.place` left it.
        counters: its statistics after the first batches: they tell whether head and loss are a region on the engine.
    """
    engine: set[int] = set()
    if counters.device != "cpu":
        engine = {id(layer) for layer in repeated_layers(model)} if has_repeated_layers(model) else set()
        loss = getattr(counters, "loss", None)
        find_head: Any = getattr(model, "get_output_embeddings", None)
        if loss is not None and loss.used and find_head is not None:
            engine.add(id(find_head()))
    found = [(name, m, ENGINE if id(m) in engine else HOST) for name, m in _pieces(model, "", engine)]
    return [_join(list(same)) for _, same in groupby(found, key=lambda piece: (_kind(piece[1]), piece[2]))]


def _pieces(module: nn.Module, name: str, engine: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """The largest modules that lie on one side as a whole; those without parameters left out."""
    if not any(True for _ in module.parameters()):
        return
    children = list(module.named_children())
    inside = any(id(m) in engine for m in module.modules() if m is not module)
    if id(module) in engine or not children or (engine and not inside):
        yield name or _kind(module), module
        return
    for child, part in children:
        yield from _pieces(part, f"{name}.{child}" if name else child, engine)


def _join(pieces: list[tuple[str, nn.Module, str]]) -> Part:
    first, module, where = pieces[0]
    last = pieces[-1][0]
    size = sum(p.numel() for _, m, _ in pieces for p in m.parameters())
    name = first if len(pieces) == 1 else f"{first} … {last.rpartition('.')[2]}"
    return Part(name, _kind(module), len(pieces), where, size)


def _kind(module: nn.Module) -> str:
    """The class of a module as the model's author knows it: anew gives the head one of its own."""
    return next(c.__name__ for c in type(module).__mro__ if not c.__module__.startswith("anew."))
