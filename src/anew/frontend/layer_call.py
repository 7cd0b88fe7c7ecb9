"""What calls a compiled layer: one function for each class of a model's layers, captured once for all of them."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch._C._dynamo.eval_frame import reset_code
from torch._dynamo.exc import BackendCompilerFailed
from torch.fx import GraphModule
from torch.nn.parallel import DistributedDataParallel

from anew.errors import AnewError
from anew.frontend.cache import with_fixed_sizes
from anew.frontend.captured import Captured
from anew.frontend.recompiles import check_recompiles
from anew.frontend.recorded import with_recording
from anew.frontend.session import Session

#: Graphs that Dynamo may keep of a model's layers of one class: one for each input shape, train and eval apart.
RECOMPILES = 64


def compile_layers(session: Session, layers: Sequence[nn.Module]) -> None:
    """Make calls of a model's layers run in regions of a session, in place of their forward.

    As ``nn.Module.compile`` does, which gives every module's graphs to one function, ``nn.Module._call_impl``, and
    with it one recompile limit to all classes and models of a process. Here a model that nobody holds any more takes
    its graphs, and with them its programs, with it.
    """
    calls = {kind: _captured_call(session, kind) for kind in dict.fromkeys(map(type, layers))}
    for layer in layers:
        layer._compiled_call_impl = with_recording(layer, with_fixed_sizes(layer, _bound(calls[type(layer)], layer)))


def _bound(call: Callable[..., Any], layer: nn.Module) -> Callable[..., Any]:
    """``call`` with a layer in front, which it does not keep alive."""
    reference = weakref.ref(layer)

    def bound(*args: Any, **kwargs: Any) -> Any:
        return call(reference(), *args, **kwargs)

    return bound


def _whole_layers() -> AbstractContextManager[Any]:
    """Inside DistributedDataParallel Dynamo would cut a graph at the edges of the gradients' buckets.

    That is for a graph of a whole model; layers are small enough for gradients to travel between them.
    """
    if DistributedDataParallel._get_active_ddp_module() is None:
        return nullcontext()
    without: AbstractContextManager[Any] = torch._dynamo.config.patch(optimize_ddp=False)
    return without


def _captured_call(session: Session, kind: type) -> Callable[..., Any]:
    def call(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return layer._call_impl(*args, **kwargs)

    def backend(module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        check_recompiles()
        return Captured(session, module)

    call.__code__ = call.__code__.replace(co_name=kind.__name__)  # Dynamo keeps graphs by code object,
    limit: Any = {"recompile_limit": RECOMPILES}  # torch's overloads do not list it
    compiled = torch.compile(call, backend=backend, fullgraph=True, dynamic=False, **limit)

    @functools.wraps(call)
    def own_errors(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        try:
            with _whole_layers():
                return compiled(layer, *args, **kwargs)
        except BackendCompilerFailed as failed:
            if isinstance(failed.inner_exception, AnewError):
                raise failed.inner_exception from None
            raise

    weakref.finalize(own_errors, reset_code, call.__code__).atexit = False  # Dynamo would keep the graphs
    return own_errors
