"""``output_hidden_states`` and ``output_attentions``: what transformers records of the calls inside a model.

transformers 5 puts a forward hook on every module whose output it may record, and keeps it; the hook asks a context
variable whether this call wants it. Dynamo cannot trace that. So inside a captured graph the hooks are silent, and
those of the layer itself run after it. What is recorded from inside a layer needs the layer in plain PyTorch.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


class RecordingWarning(UserWarning):
    """Layers run in plain PyTorch, because the caller asked for what is inside them."""


class _OutsideGraphs:
    """A hook of transformers that a captured graph leaves out.

    Attributes:
        hook: the hook itself.
        key: what it records, such as ``attentions``.
    """

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook
        cells = zip(hook.__code__.co_freevars, hook.__closure__ or (), strict=True)
        self.key: str = next(cell.cell_contents for name, cell in cells if name == "key")

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Record in plain PyTorch alone."""
        return None if torch.compiler.is_compiling() else self.hook(module, args, output)


def with_recording(layer: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the call of a compiled layer so that transformers may record its output, or what happens inside it.

    ``call`` takes the layer's arguments. Asked for what happens inside, it warns with RecordingWarning. What is
    returned does not keep the layer alive.
    """
    reference = weakref.ref(layer)

    def called(*args: Any, **kwargs: Any) -> Any:
        layer: Any = reference()
        hooks = list(_hooks(layer))
        wanted = _wanted() if hooks else set()
        inside = {hook.key for module, hook in hooks if module is not layer} & wanted
        if inside:
            _warn(layer, inside)
            return layer._call_impl(*args, **kwargs)
        result = call(*args, **kwargs)
        for module, hook in hooks:
            if module is layer and hook.key in wanted:
                hook.hook(layer, args, result)
        return result

    return called


def _hooks(layer: nn.Module) -> Iterator[tuple[nn.Module, _OutsideGraphs]]:
    """The recording hooks in a layer, each made silent inside graphs."""
    for module in layer.modules():
        for number, hook in module._forward_hooks.items():
            if getattr(hook, "__qualname__", "").endswith(".output_capturing_hook"):
                hook = module._forward_hooks[number] = _OutsideGraphs(hook)
            if isinstance(hook, _OutsideGraphs):
                yield module, hook


def _wanted() -> set[str]:
    """What the present call of a model records."""
    from transformers.utils.output_capturing import _active_collector

    return set(_active_collector.get() or ())


def _warn(layer: nn.Module, inside: set[str]) -> None:
    warnings.warn(
        f"{type(layer).__name__} runs in plain PyTorch, not on the engine, in calls that record "
        f"{' and '.join(sorted(inside))} from inside it",
        RecordingWarning,
        stacklevel=2,
    )
