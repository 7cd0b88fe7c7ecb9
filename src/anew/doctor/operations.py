"""Probes of the operations: bit for bit where the arithmetic is known, and by the size of the error where it is not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anew.device.base import Device, DeviceError
from anew.doctor.finding import Experiment, Finding, numbers, reference_engine, relative_error
from anew.mil import Builder, MilError, Value

#: A calibrated operation may err by this multiple of the emulator's error, and half a rounding of fp16 besides.
SLACK, ROUNDING = 1.5, 2**-12
SHAPE = (1, 16, 4, 64)
RESULT = "result"

#: Functions of one tensor: what they mean, and whether they want positive numbers.
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "abs": (torch.abs, False),
    "relu": (torch.relu, False),
    "square": (torch.square, False),
    "sign": (torch.sign, False),
    "exp": (torch.exp, False),
    "exp2": (torch.exp2, False),
    "erf": (torch.erf, False),
    "tanh": (torch.tanh, False),
    "sigmoid": (torch.sigmoid, False),
    "silu": (F.silu, False),
    "softplus": (F.softplus, False),
    "softsign": (F.softsign, False),
    "atan": (torch.atan, False),
    "log": (torch.log, True),
    "sqrt": (torch.sqrt, True),
    "rsqrt": (torch.rsqrt, True),
    "inverse": (torch.reciprocal, True),
}
#: Functions of two tensors.
PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "real_div": torch.div,
}
#: Reductions over the last axis.
REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "reduce_sum": lambda x: x.sum(-1, keepdim=True),
    "reduce_mean": lambda x: x.mean(-1, keepdim=True),
    "reduce_max": lambda x: x.amax(-1, keepdim=True),
    "reduce_min": lambda x: x.amin(-1, keepdim=True),
    "reduce_sum_square": lambda x: x.square().sum(-1, keepdim=True),
    "reduce_l2_norm": lambda x: x.norm(dim=-1, keepdim=True),
}
#: Movements of one tensor: the parameters of the operation, and what it means.
MOVES: dict[str, tuple[Mapping[str, Any], Callable[[Tensor], Tensor]]] = {
    "reshape": ({"shape": [1, 64, 16, 4]}, lambda x: x.reshape(1, 64, 16, 4)),
    "transpose": ({"perm": [0, 3, 2, 1]}, lambda x: x.permute(0, 3, 2, 1)),
    "slice_by_size": ({"begin": [0, 4, 1, 8], "size": [1, 8, 2, 32]}, lambda x: x[:, 4:12, 1:3, 8:40]),
    "slice_by_index": ({"begin": [0, 4, 0, 0], "end": [1, 12, 4, 64]}, lambda x: x[:, 4:12]),
    "expand_dims": ({"axes": [0]}, lambda x: x[None]),
    "tile": ({"reps": [1, 2, 1, 1]}, lambda x: x.repeat(1, 2, 1, 1)),
    "pad": (
        {"pad": [0, 0, 0, 0, 1, 1, 2, 2], "mode": "constant", "constant_val": 0.0},
        lambda x: F.pad(x, (2, 2, 1, 1)),
    ),
}
CONV = {"strides": [1, 1], "pad_type": "custom", "dilations": [1, 1], "groups": 1}
POOL = {
    "kernel_sizes": [2, 2],
    "strides": [2, 2],
    "pad_type": "valid",
    "pad": [0, 0, 0, 0],
    "ceil_mode": False,
}


def operations(device: Device) -> Iterator[Finding]:
    """Every operation that anew's compiler emits, one program each."""
    x, y = numbers(1, *SHAPE), (numbers(2, *SHAPE).abs() + 0.25).half().double()
    for kind, (function, positive) in FUNCTIONS.items():
        operand = y if positive else x
        yield _one(device, kind, {"x": operand}, function(operand))
    for kind, pair in PAIRS.items():
        yield _one(device, kind, {"x": x, "y": y}, pair(x, y))
    for kind, reduction in REDUCTIONS.items():
        yield _one(device, kind, {"x": y}, reduction(y), axes=[-1], keep_dims=True)
    for kind, (parameters, move) in MOVES.items():
        yield _one(device, kind, {"x": x}, move(x), **parameters)
    yield _one(device, "softmax", {"x": x}, x.softmax(-1), axis=-1)
    yield _one(device, "max_pool", {"x": x}, F.max_pool2d(x, 2), **POOL)
    yield _program(device, "concat", _concat, {"x": x, "y": y}, torch.cat([x, y], 1))
    yield _program(device, "select", _select, {"x": x, "y": y}, torch.where(x > 0, x, y))
    yield from _products(device)


def _concat(b: Builder, v: Mapping[str, Value]) -> Value:
    return b.op("concat", RESULT, values=[v["x"], v["y"]], axis=1, interleave=False)


def _select(b: Builder, v: Mapping[str, Value]) -> Value:
    return b.op("select", RESULT, cond=b.op("greater", x=v["x"], y=0.0), a=v["x"], b=v["y"])


def _products(device: Device) -> Iterator[Finding]:
    """Matmuls in every orientation that forward and backward take, and convolutions, constant and at run time."""
    for left in (False, True):
        for right in (False, True):
            x = numbers(3, 1, 2, *((96, 32) if left else (32, 96)))
            y = numbers(4, 1, 2, *((48, 96) if right else (96, 48)), scale=96**-0.5)
            name = "matmul " + ("x" + "ᵀ" * left + " y" + "ᵀ" * right)
            wanted = (x.mT if left else x) @ (y.mT if right else y)
            yield _one(device, name, {"x": x, "y": y}, wanted, transpose_x=left, transpose_y=right)
    for side, name in ((1, "conv 1x1"), (3, "conv 3x3")):
        x, w = numbers(5, 1, 32, 16, 16), numbers(6, 32, 32, side, side, scale=(32 * side * side) ** -0.5)
        form = CONV | {"pad": [side // 2] * 4}
        wanted = F.conv2d(x, w, padding=side // 2)
        yield _program(device, name, functools.partial(_baked, w, form), {"x": x}, wanted)
        yield _one(device, f"{name}, weight at run time", {"x": x, "weight": w}, wanted, **form)


def _baked(weight: Tensor, form: Mapping[str, Any], b: Builder, v: Mapping[str, Value]) -> Value:
    return b.op("conv", RESULT, x=v["x"], weight=b.array(weight.numpy(), "w"), **form)


def _one(device: Device, name: str, inputs: Mapping[str, Tensor], wanted: Tensor, **parameters: Any) -> Finding:
    """A program of one operation, named by the first word, whose operands are the inputs."""

    def graph(b: Builder, values: Mapping[str, Value]) -> Value:
        return b.op(_kind(name), RESULT, **values, **parameters)

    return _program(device, name, graph, inputs, wanted)


def _kind(name: str) -> str:
    return name.split()[0]


def _program(
    device: Device,
    name: str,
    graph: Callable[[Builder, Mapping[str, Value]], Value],
    inputs: Mapping[str, Tensor],
    wanted: Tensor,
) -> Finding:
    """Run one operation: equal to the emulator's where its arithmetic is known to the bit, else as near to fp64."""
    probe = f"operations/{name}"
    builder = Builder()
    result = graph(builder, {key: builder.input(key, x.shape) for key, x in inputs.items()})
    experiment = Experiment.of(builder, [result], inputs)
    emulated = experiment.run(reference_engine(device))[RESULT]
    stated = relative_error(emulated, wanted)
    exact = device.chip.arithmetic(_kind(name)) == "bit-exact"
    expected = "equal to the bit" if exact else f"error at most {SLACK * stated + ROUNDING:.1e}"
    try:
        found = experiment.run(device)[RESULT]
    except (DeviceError, MilError) as refused:
        return Finding(probe, expected, str(refused), "differs")
    error, different = relative_error(found, wanted), int((found != emulated).sum())
    raw = {"error": error, "emulated_error": stated, "different": different, "elements": found.numel()}
    if exact:
        text = "equal to the bit" if not different else f"{different} of {found.numel()} differ, error {error:.1e}"
        return Finding(probe, expected, text, "differs" if different else "agrees", raw)
    near = error <= SLACK * stated + ROUNDING
    return Finding(probe, expected, f"error {error:.1e}", "agrees" if near else "differs", raw)
