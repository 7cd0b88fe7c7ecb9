"""Records what PyTorch itself computes in a step: the work that no region took to the engine."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

#: Operations that make a tensor or look at one without computing; views are told by themselves.
_NO_WORK = {"aten.detach", "aten.lift_fresh", "aten.empty", "aten.empty_like", "aten._local_scalar_dense", "aten.alias"}

#: Files whose lines say nothing about the model.
_FRAMEWORK = (str(Path(torch.__file__).parent), str(Path(__file__).parent.parent), "<")


@dataclass(frozen=True)
class HostCall:
    """An operation as PyTorch ran it: its name, the shape of its result, the model's line it came from."""

    operation: str
    shape: tuple[int, ...]
    source: str


class HostRecorder(TorchDispatchMode):
    """A dispatch mode that counts operations by :class:`HostCall`, and their flops.

    What runs below a function of ``inside`` belongs to a region and is not counted. The search for a source line ends
    at ``step``, so that operations of autograd, which no line of the model calls, have none.

    Attributes:
        calls: how often each was run.
        flops: matmul and convolution flops of all its calls, by PyTorch's own formulas (``torch.utils.flop_counter``).
    """

    def __init__(self, step: CodeType, inside: set[CodeType]) -> None:
        super().__init__()
        self.step = step
        self.inside = inside
        self.calls: Counter[HostCall] = Counter()
        self.flops: Counter[HostCall] = Counter()

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Compiled regions keep running compiled under this mode."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.is_view or str(func.overloadpacket) in _NO_WORK:
            return result
        source, inside = self._place()
        if not inside:
            call = HostCall(str(func), _shape(result), source)
            self.calls[call] += 1
            self.flops[call] += flops_of(func, args, kwargs, result)
        return result

    def _place(self) -> tuple[str, bool]:
        """The innermost line of the model that leads here, and whether a region leads here."""
        frame: FrameType | None = sys._getframe(2)
        source = ""
        while frame is not None and frame.f_code is not self.step:
            if frame.f_code in self.inside:
                return source, True
            if not source and not frame.f_code.co_filename.startswith(_FRAMEWORK):
                source = source_line(frame.f_code.co_filename, frame.f_lineno)
            frame = frame.f_back
        return source, False


def source_line(file: str, line: int | str) -> str:
    """A line of a model as users read it: an installed package's file from the package's name on."""
    return f"{file.rpartition('site-packages/')[2]}:{line}"


def flops_of(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Matmul and convolution flops of one ATen call, by PyTorch's own formulas; 0 for any other operation."""
    formula = flop_registry.get(getattr(func, "overloadpacket", None))
    return int(formula(*args, **kwargs, out_val=result)) if formula is not None else 0


def node_flops(node: Node) -> int:
    """Matmul and convolution flops of a graph node with ``val`` metadata."""

    def value(n: Node) -> Any:
        return n.meta["val"]

    return flops_of(node.target, map_arg(node.args, value), map_arg(node.kwargs, value), node.meta.get("val"))


def _shape(result: Any) -> tuple[int, ...]:
    first = next((x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, Tensor)), None)
    return () if first is None else tuple(first.shape)
