"""Errors of function tables, softmax, sums, norms and attention, published with ANEForge 0.4.0, and the emulator's.

A figure is ||output - reference|| / ||reference||. Where a benchmark's operands are known the emulator gets the very
same. The sweep's are not known, nor the norm of its errors: read as the 2-norm, in which the project's other figures
are, over N(0, 1), or |N(0, 1)| + 1/2 where a function wants positive numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from anew.device.emulator.executor import Executable
from anew.device.emulator.kernels import Arithmetic
from anew.mil import OPS, Builder, Value

Array = NDArray[np.floating]
Graph = Callable[[Builder, Value], Value]


@dataclass(frozen=True)
class Figure:
    """One published error: the workload, the chips that share it, its value, and what computes the emulator's."""

    name: str
    chips: str
    published: float
    compute: Callable[[], float]


#: full_mil_vocabulary_sweep.json, one machine.
SWEEP = {
    "exp": 0.00047,
    "exp2": 0.00048,
    "log": 0.0008,
    "sqrt": 0.00043,
    "rsqrt": 0.00104,
    "inverse": 0.00028,
    "erf": 0.0007,
    "tanh": 0.00126,
    "sigmoid": 0.00384,
    "silu": 0.00997,
    "gelu": 0.00239,
    "softplus": 0.00078,
    "softsign": 0.00076,
}
_POSITIVE = ("log", "sqrt", "rsqrt", "inverse")

#: device_bandwidth_roofline_results.json, M5 Pro: rows of 4096, drawn in this order from one generator.
_ROWS = (64, 256, 1024, 2048)
_BANDWIDTH = {
    "gelu": (0.0024077288650788567, 0.0023955107862632993, 0.0024012110017771985, 0.002399864679010996),
    "reduce_sum": (0.0007592270061840784, 0.0008192885359946541, 0.0008264193150660284, 0.0008068878926405314),
    "softmax": (0.0010453731724024647, 0.0010302605562656905, 0.001049640177421753, 0.0010617395002181834),
}
#: rooflines/*.json: the same from 256 rows on, the first errors of the short run.
_SHORT = {
    "reduce_sum": (("M1 and M2", 0.000722), ("M4 and later", 0.000808)),
    "softmax": (("M1 and M2", 0.00102407), ("M4 and later", 0.00102565)),
}
#: device_compare_wattcomplete_results_*.json
_NORMS = {
    "layer_norm": (("M1, M2 Pro", 0.0006666825403169065), ("M5 Pro", 0.0006721924948683699)),
    "rms_norm": (("M1, M2 Pro", 0.0005579519158440576), ("M5 Pro", 0.0005661251602187821)),
}
_ATTENTION = {
    197: (("M1, M2 Pro", 0.0015743203944934068), ("M5 Pro", 0.0016295418085633957)),
    512: (("M1", 0.002349398736464838), ("M2 Pro", 0.0023464806760607687), ("M5 Pro", 0.0023463584022740125)),
}


def sweep_figures() -> Iterator[Figure]:
    """The operations with a function table."""
    for kind, published in SWEEP.items():
        yield Figure(kind, "one machine", published, lambda kind=kind: _sweep(kind))


def row_figures(rows: tuple[int, ...] = _ROWS) -> Iterator[Figure]:
    """gelu, sums and softmax of rows of 4096 values."""
    for kind, errors in _BANDWIDTH.items():
        for count, published in zip(rows, errors, strict=False):
            yield Figure(f"{kind} {count}x4096", "M5 Pro", published, lambda k=kind, n=count: _rows(k, _drawn(n, 64)))
    for kind, cases in _SHORT.items():
        for chips, published in cases:
            yield Figure(f"{kind} 256x4096", chips, published, lambda k=kind: _rows(k, _drawn(256, 256)))


def composed_figures() -> Iterator[Figure]:
    """Norms and attention, composed of operations as the benchmark's library composes them."""
    for kind, cases in _NORMS.items():
        for chips, published in cases:
            yield Figure(f"{kind} 197x768", chips, published, lambda k=kind: _norm(k))
    for length, cases in _ATTENTION.items():
        for chips, published in cases:
            yield Figure(f"attention {length}", chips, published, lambda n=length: _attention(n))


def run(graph: Graph, x: Array) -> Array:
    """What the emulated engine makes of `x`, as float64: exact products, direct convolutions, any chip's rules."""
    builder = Builder()
    value = builder.input("x", x.shape)
    function = builder.function([graph(builder, value)])
    arithmetic = Arithmetic(exact=True, winograd=False, slice_limit=math.inf)
    (name,) = (output.name for output in function.outputs)
    bindings = {"x": torch.from_numpy(x.astype(np.float16)), name: torch.empty(function.outputs[0].shape).half()}
    Executable(function, arithmetic).run(bindings)
    result: Array = bindings[name].double().numpy()
    return result


def error(output: Array, reference: Array) -> float:
    """The relative error in the 2-norm."""
    return float(np.linalg.norm((output - reference).ravel()) / np.linalg.norm(reference.ravel()))


def parameters(kind: str) -> Mapping[str, object]:
    """The parameters of an operation with a function table."""
    extra = {"gelu": {"mode": "EXACT"}}
    return extra.get(kind, {"epsilon": 0.0} if kind in ("log", "rsqrt", "inverse") else {})


def _sweep(kind: str) -> float:
    x = np.random.default_rng(0).standard_normal((256, 1024))
    x = (np.abs(x) + 0.5 if kind in _POSITIVE else x).astype(np.float16).astype(np.float64)
    reference = OPS[kind].meaning(torch.from_numpy(x), **parameters(kind)).numpy()
    return error(run(lambda b, v: b.op(kind, x=v, **parameters(kind)), x), reference)


def _drawn(rows: int, first: int) -> Array:
    rng = np.random.default_rng(11)
    for count in _ROWS:
        if count >= first:
            x = rng.standard_normal((count, 4096)).astype(np.float32)
            if count == rows:
                return x
    raise ValueError(f"the benchmark draws no {rows} rows")


def _rows(kind: str, x: Array) -> float:
    if kind == "reduce_sum":
        return error(run(lambda b, v: b.op(kind, x=v, axes=[-1], keep_dims=False), x), x.sum(-1))
    if kind == "softmax":
        return error(run(lambda b, v: b.op(kind, x=v, axis=-1), x), _softmax(x))
    tanh_form = x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))  # the benchmark's reference
    return error(run(lambda b, v: b.op(kind, x=v, mode="EXACT"), x), tanh_form)


def _softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _norm(kind: str) -> float:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((197, 768)).astype(np.float32)
    gain = (rng.standard_normal(768).astype(np.float32) * 0.1 + 1.0).astype(np.float32)
    bias = rng.standard_normal(768).astype(np.float32) * 0.1
    if kind == "rms_norm":
        reference = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * gain
        return error(run(lambda b, v: _rms_norm(b, v, gain), x), reference)
    centred = x - x.mean(-1, keepdims=True)
    reference = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gain + bias
    return error(run(lambda b, v: _layer_norm(b, v, gain, bias), x), reference)


def _layer_norm(b: Builder, x: Value, gain: Array, bias: Array) -> Value:
    centred = b.op("sub", x=x, y=b.op("reduce_mean", x=x, axes=[-1], keep_dims=True))
    variance = b.op("reduce_mean", x=b.op("mul", x=centred, y=centred), axes=[-1], keep_dims=True)
    scale = b.op("rsqrt", x=b.op("add", x=variance, y=1e-5), epsilon=0.0)
    normed = b.op("mul", x=b.op("mul", x=centred, y=scale), y=b.array(gain[None]))
    return b.op("add", x=normed, y=b.array(bias[None]))


def _rms_norm(b: Builder, x: Value, gain: Array) -> Value:
    norm = b.op("sqrt", x=b.op("reduce_sum", x=b.op("mul", x=x, y=x), axes=[-1], keep_dims=True))
    return b.op("mul", x=b.op("real_div", x=x, y=norm), y=b.array(gain[None] * np.sqrt(768)))


def _attention(length: int, width: int = 768, heads: int = 12) -> float:
    rng = np.random.default_rng(5)
    weights = [rng.standard_normal((width, width)).astype(np.float32) * (1.0 / np.sqrt(width)) for _ in range(4)]
    biases = [rng.standard_normal(width).astype(np.float32) * 0.01 for _ in range(4)]
    x = rng.standard_normal((length, width)).astype(np.float32)
    split, depth = (length, heads, width // heads), width // heads

    def graph(b: Builder, v: Value) -> Value:
        def linear(y: Value, i: int) -> Value:
            product = b.op("matmul", x=y, y=b.array(weights[i]), transpose_x=False, transpose_y=True)
            return b.op("add", x=product, y=b.array(biases[i][None]))

        q, k, values = (
            b.op("transpose", x=b.op("reshape", x=linear(v, i), shape=split), perm=[1, 0, 2]) for i in range(3)
        )
        scores = b.op("mul", x=b.op("matmul", x=q, y=k, transpose_x=False, transpose_y=True), y=1 / math.sqrt(depth))
        shares = b.op("softmax", x=scores, axis=-1)
        mixed = b.op("matmul", x=shares, y=values, transpose_x=False, transpose_y=False)
        return linear(b.op("reshape", x=b.op("transpose", x=mixed, perm=[1, 0, 2]), shape=(length, width)), 3)

    def exact(y: Array, i: int) -> Array:
        return y @ weights[i].astype(np.float64).T + biases[i]

    q, k, values = (exact(x.astype(np.float64), i).reshape(split).transpose(1, 0, 2) for i in range(3))
    mixed = _softmax(q @ k.transpose(0, 2, 1) / math.sqrt(depth)) @ values
    return error(run(graph, x), exact(mixed.transpose(1, 0, 2).reshape(length, width), 3))
