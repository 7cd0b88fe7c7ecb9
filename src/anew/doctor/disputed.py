"""Probes of the facts on which sources disagree: a small program for each switch tells which side this device takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from anew.device.base import Device, DeviceError
from anew.doctor.finding import Experiment, Finding, numbers, relative_error
from anew.doctor.operations import CONV
from anew.mil import Builder, MilError, Value

#: A construct that runs may err by this much and still count as right.
TOLERANCE = 1e-2
X = numbers(0, 1, 32, 4, 48)
#: A program and its result ``y`` in float64.
Question = tuple[Experiment, Tensor]


def disputed(device: Device) -> Iterator[Finding]:
    """Run each construct; ``allow`` where it runs and is right, ``refuse`` where it is refused or wrong."""
    for switch, ask in QUESTIONS.items():
        experiment, wanted = ask()
        raw: dict[str, object] = {"switch": switch}
        try:
            raw["error"] = error = relative_error(experiment.run(device)["y"], wanted)
            option, how = (
                ("allow", "") if error <= TOLERANCE else ("refuse", f": it runs, with an error of {error:.1e}")
            )
        except (DeviceError, MilError) as refused:
            option, how = "refuse", f": {refused}"
        raw["option"] = option
        taken = device.chip.switches[switch].value
        yield Finding(f"disputed/{switch}", taken, option + how, "agrees" if option == taken else "differs", raw)


def _of(graph: Callable[[Builder, Value], Value], wanted: Tensor, x: Tensor = X) -> Question:
    b = Builder()
    return Experiment.of(b, [graph(b, b.input("x", x.shape))], {"x": x}), wanted


def _fp32() -> Question:
    b = Builder()
    x = b.input("x", X.shape, "fp32")
    return Experiment.of(b, [b.op("add", "y", x=x, y=x)], {"x": X}), 2 * X


def _concat_inputs() -> Question:
    return _of(lambda b, x: b.op("concat", "y", values=[x, x, x], axis=1, interleave=False), torch.cat([X, X, X], 1))


def _sum_of_squares(b: Builder, x: Value) -> Value:
    return b.op("reduce_sum", x=b.op("mul", x=x, y=x), axes=[1], keep_dims=True)


def _rsqrt_after_reduce() -> Question:
    wanted = X.square().sum(1, keepdim=True).rsqrt()
    return _of(lambda b, x: b.op("rsqrt", "y", x=_sum_of_squares(b, x)), wanted)


def _sqrt_then_broadcast() -> Question:
    wanted = X / X.square().sum(1, keepdim=True).sqrt()
    return _of(lambda b, x: b.op("real_div", "y", x=x, y=b.op("sqrt", x=_sum_of_squares(b, x))), wanted)


def _softmax_power_of_2() -> Question:
    return _of(lambda b, x: b.op("softmax", "y", x=x, axis=-1), X.softmax(-1))


def _reduce_mean() -> Question:
    return _of(lambda b, x: b.op("reduce_mean", "y", x=x, axes=[1], keep_dims=True), X.mean(1, keepdim=True))


def _weight(seed: int, out: int, into: int) -> Tensor:
    return numbers(seed, out, into, 1, 1, scale=into**-0.5)


def _conv(b: Builder, x: Value, weight: Tensor, **more: object) -> Value:
    form = CONV | {"pad": [0] * 4, "pad_type": "valid"} | more
    return b.op("conv", "y", x=x, weight=b.array(weight.numpy(), "w"), **form)


def _sliced_input_norm() -> Question:
    w = _weight(1, 16, 16)

    def graph(b: Builder, x: Value) -> Value:
        part = b.op("slice_by_index", x=x, begin=[0, 8, 0, 0], end=[1, 24, 4, 48])
        mean = b.op("add", x=b.op("mul", x=_sum_of_squares(b, part), y=1 / 16), y=1e-5)
        return _conv(b, b.op("mul", x=part, y=b.op("pow", x=mean, y=-0.5)), w)

    part = X[:, 8:24]
    return _of(graph, F.conv2d(part * (part.square().mean(1, keepdim=True) + 1e-5).rsqrt(), w))


def _inline_flags() -> Question:
    """The flags of a matmul as literals inside the call, as one project writes them."""
    b = Builder()
    x, y = numbers(2, 1, 2, 16, 32), numbers(3, 1, 2, 16, 32, scale=0.2)
    flags = {"transpose_x": False, "transpose_y": True}
    made = Experiment.of(b, [b.op("matmul", "y", x=b.input("a", x.shape), y=b.input("b", y.shape), **flags)], {})
    text = made.text
    for name, literal in (("no", "false"), ("yes", "true")):
        text = text.replace(f"= {name}", f"= {literal}")
    return replace(made, text=text, inputs={"a": x, "b": y}), x @ y.mT


def _conv_bias() -> Question:
    w, bias = _weight(4, 32, 32), numbers(5, 32)
    return _of(lambda b, x: _conv(b, x, w, bias=b.array(bias.numpy(), "bias")), F.conv2d(X, w, bias))


def _gqa() -> Question:
    b = Builder()
    q, k, v = numbers(6, 1, 4, 16, 32), numbers(7, 1, 2, 16, 32), numbers(8, 1, 2, 16, 32)
    ports = {name: b.input(name, x.shape) for name, x in (("q", q), ("k", k), ("v", v))}

    def spread(x: Value) -> Value:
        wide = b.op("tile", x=b.op("reshape", x=x, shape=[2, 1, 16, 32]), reps=[1, 2, 1, 1])
        return b.op("reshape", x=wide, shape=[1, 4, 16, 32])

    scores = b.op("matmul", x=ports["q"], y=spread(ports["k"]), transpose_x=False, transpose_y=True)
    weights = b.op("softmax", x=b.op("mul", x=scores, y=32**-0.5), axis=-1)
    y = b.op("matmul", "y", x=weights, y=spread(ports["v"]), transpose_x=False, transpose_y=False)
    wanted = F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
    return Experiment.of(b, [y], {"q": q, "k": k, "v": v}), wanted


def _sdpa_mask() -> Question:
    b = Builder()
    q, k, v = (numbers(n, 1, 2, 32, 32) for n in (9, 10, 11))
    mask = torch.full((1, 1, 32, 32), -1e4, dtype=torch.float64).triu(1)
    inputs = {"query": q, "key": k, "value": v, "attn_mask": mask}
    ports = {name: b.input(name, x.shape) for name, x in inputs.items()}
    y = b.op("scaled_dot_product_attention", "y", **ports)
    return Experiment.of(b, [y], inputs), F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _last_axis_rope() -> Question:
    def graph(b: Builder, x: Value) -> Value:
        first = b.op("slice_by_size", x=x, begin=[0, 0, 0, 0], size=[1, 32, 4, 24])
        second = b.op("slice_by_size", x=x, begin=[0, 0, 0, 24], size=[1, 32, 4, 24])
        turned = b.op("mul", x=second, y=-1.0)
        return b.op("concat", "y", values=[turned, first], axis=-1, interleave=False)

    return _of(graph, torch.cat([-X[..., 24:], X[..., :24]], -1))


def _wide_input() -> Question:
    x, w = numbers(12, 1, 32000, 1, 16), _weight(13, 16, 32000)
    return _of(lambda b, v: _conv(b, v, w), F.conv2d(x, w), x)


def _identity() -> Question:
    return _of(lambda b, x: b.op("add", "y", x=b.op("identity", x=x), y=0.0), X)


#: By switch. Left out: row_pitch (probed as ports/rows), compile_budget (programs/budget), swept_operations, of which
#: the compiler emits none.
QUESTIONS: dict[str, Callable[[], Question]] = {
    "fp32": _fp32,
    "concat_inputs": _concat_inputs,
    "rsqrt_after_reduce": _rsqrt_after_reduce,
    "sqrt_then_broadcast": _sqrt_then_broadcast,
    "softmax_power_of_2": _softmax_power_of_2,
    "reduce_mean": _reduce_mean,
    "sliced_input_norm": _sliced_input_norm,
    "inline_flags": _inline_flags,
    "conv_bias": _conv_bias,
    "gqa": _gqa,
    "sdpa_mask": _sdpa_mask,
    "last_axis_rope": _last_axis_rope,
    "wide_input": _wide_input,
    "identity": _identity,
}
