"""When two captured graphs are one: equal operations on inputs of equal kind compute the same, and share programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg


class _Named:
    """Stands for a node in printed arguments."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def structure(module: GraphModule, inputs: Sequence[Tensor]) -> str:
    """A text that is equal for graphs which one region can serve, given the tensors each is called with.

    What prints as an address (a function, a constant tensor) is equal only if it is the same object; a region keeps
    its graph, and so the objects it names, alive.
    """
    ambient = f"grad {torch.is_grad_enabled()} inference {torch.is_inference_mode_enabled()}"
    return "\n".join([ambient, *(_kind(x) for x in inputs), *_lines(module)])


def _kind(x: Tensor) -> str:
    parameter = isinstance(x, torch.nn.Parameter)
    return f"{tuple(x.shape)} {x.stride()} {x.dtype} {x.device} {x.requires_grad} {parameter}"


def _lines(module: GraphModule) -> list[str]:
    names = {node: f"%{i}" for i, node in enumerate(module.graph.nodes)}
    lines = []
    for node in module.graph.nodes:
        args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda n: _Named(names[n]))  # type: ignore[arg-type, return-value]
        target = node.target if node.op in ("call_function", "call_method") else _static(node)
        lines.append(f"{names[node]} {node.op} {target!r} {args} {kwargs}")
        if node.op in ("get_attr", "call_module"):
            lines.extend(_attribute(module, str(node.target)))
    return lines


def _static(node: Node) -> bool:
    """Whether Dynamo calls a placeholder a parameter or a buffer: what is computed of buffers alone may be kept."""
    return "_dynamo_static_input_type" in node.meta.get("tensor_dict", {})


def _attribute(module: GraphModule, target: str) -> list[str]:
    value: Any = module
    for name in target.split("."):
        value = getattr(value, name)
    return ["{", *_lines(value), "}"] if isinstance(value, GraphModule) else [f"{type(value)} {id(value)}"]
