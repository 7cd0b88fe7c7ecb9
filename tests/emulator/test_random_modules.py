"""Random small modules of the operations that lower, forward and backward, strict, against PyTorch in fp64.

How far fp16 may go astray depends on the module, so PyTorch's own half precision sets the measure: the engine's error
may be a few times that of the same module in torch.float16. Functions with a kink see inputs and parameters only, which
fp16 holds exactly, so that no rounding moves a value across the kink. One module in ten goes through torch.compile, the
others to the backend as the graph that Dynamo would hand it: Dynamo's own work takes longer than all that is tested.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Proxy
from torch.fx.proxy import GraphAppendingTracer
from torch.nn import functional as F

from anew.frontend.backend import anew

pytestmark = pytest.mark.usefixtures("fresh")

CASES = 100
#: Errors are compared over the norm of the reference; the first covers what half precision gets right by luck.
SLACK, FACTOR = 4e-3, 6.0
#: Besides, a slope near zero is a difference of values near one, each rounded to fp16.
ROUNDING = 2**-11
#: Modules whose values or gradients pass this are left out: they are a matter of range, tested elsewhere.
LARGEST = 200.0

SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softplus": F.softplus,
    "exp": lambda x: torch.exp(-x * x),
    "log": lambda x: torch.log(x * x + 1),
    "sqrt": lambda x: torch.sqrt(x * x + 1),
    "rsqrt": lambda x: torch.rsqrt(x * x + 1),
    "reciprocal": lambda x: torch.reciprocal(x * x + 1),
    "square": torch.square,
    "cube": lambda x: x**3,
    "negative": torch.neg,
    "affine": lambda x: 2 * x - 0.5,
    "erf": torch.erf,
}
KINKED: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "abs": torch.abs,
    "leaky_relu": F.leaky_relu,
    "clamp": lambda x: x.clamp(-0.75, 0.75),
    "where": lambda x: torch.where(x > 0.25, x, 0.5 * x),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.125),
    "amax": lambda x: x.amax(-1, keepdim=True),
    "amin": lambda x: x.amin(-1, keepdim=True),
    "relu6": F.relu6,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": lambda x, y: x / (y * y + 1),
    "add_alpha": lambda x, y: torch.add(x, y, alpha=0.5),
}


@dataclass(frozen=True)
class Step:
    """One operation: its name, a function of values, and which values it takes."""

    name: str
    function: Callable[..., Tensor]
    operands: tuple[int, ...]


class RandomModule(nn.Module):
    """A list of steps over the input and parameters; the last values that nothing reads are its results."""

    def __init__(self, parameters: list[Tensor], steps: list[Step]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(parameters)
        self.steps = steps

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.results([x, *self.weights])

    def results(self, values: list[Any]) -> tuple[Any, ...]:
        """The results for the input and the parameters, tensors or nodes of a graph."""
        for step in self.steps:
            values = [*values, step.function(*[values[i] for i in step.operands])]
        read = {i for step in self.steps for i in step.operands}
        return tuple(v for i, v in enumerate(values) if i not in read and i > len(self.weights))


def grid(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    """Values that fp16 holds exactly: odd multiples of 1/64 up to 1.5, none of them twice."""
    count = int(torch.Size(shape).numel())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    steps = torch.randperm(max(96, count), generator=generator)[:count]
    return ((steps.double() * 2 + 1) / (max(96, count) * 2) * 3 - 1.5).half().double().reshape(shape)


def smooth(draw: st.DrawFn, shapes: list[tuple[int, ...]], exact: int) -> Step:
    name = draw(st.sampled_from(sorted(SMOOTH)))
    return Step(name, SMOOTH[name], (draw(st.integers(0, len(shapes) - 1)),))


def kinked(draw: st.DrawFn, shapes: list[tuple[int, ...]], exact: int) -> Step:
    name = draw(st.sampled_from(sorted(KINKED)))
    return Step(name, KINKED[name], (draw(st.integers(0, exact - 1)),))


def binary(draw: st.DrawFn, shapes: list[tuple[int, ...]], exact: int) -> Step | None:
    left = draw(st.integers(0, len(shapes) - 1))
    fitting = [i for i, s in enumerate(shapes) if _broadcasts(s, shapes[left])]
    name = draw(st.sampled_from(sorted(BINARY)))
    return Step(name, BINARY[name], (left, draw(st.sampled_from(fitting))))


def _broadcasts(x: tuple[int, ...], y: tuple[int, ...]) -> bool:
    return all(a == b or 1 in (a, b) for a, b in zip(reversed(x), reversed(y), strict=False))


def product(draw: st.DrawFn, shapes: list[tuple[int, ...]], exact: int) -> Step | None:
    """A matrix product of two values that fit, the second transposed or not."""
    pairs = [
        (i, j, flip)
        for i, a in enumerate(shapes)
        for j, b in enumerate(shapes)
        for flip in (False, True)
        if _multiplies(a, b[:-2] + b[:-3:-1] if flip else b)
    ]
    if not pairs:
        return None
    i, j, flip = draw(st.sampled_from(pairs))
    return Step("matmul", (lambda x, y: x @ y.mT) if flip else torch.matmul, (i, j))


def _multiplies(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return min(len(a), len(b)) >= 2 and a[-1] == b[-2] and _broadcasts(a[:-2], b[:-2])


def over_rows(draw: st.DrawFn, shapes: list[tuple[int, ...]], exact: int) -> Step:
    """Softmax, norms and reductions."""
    i = draw(st.integers(0, len(shapes) - 1))
    rank, last = len(shapes[i]), shapes[i][-1]
    dim = draw(st.integers(-rank, rank - 1))
    keep = draw(st.booleans()) or rank == 1
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "softmax": lambda x: torch.softmax(x, dim),
        "log_softmax": lambda x: torch.log_softmax(x, dim),
        "sum": lambda x: x.sum(dim, keepdim=keep),
        "mean": lambda x: x.mean(dim, keepdim=keep),
        "layer_norm": lambda x: F.layer_norm(x, (last,), eps=0.25),
        "rms_norm": lambda x: F.rms_norm(x, (last,), eps=0.25),
    }
    name = draw(st.sampled_from(sorted(kinds)))
    return Step(f"{name} {dim}", kinds[name], (i,))


def movement(draw: st.DrawFn, shapes: list[tuple[int, ...]], exact: int) -> Step:
    """Views, slices, concatenation."""
    i = draw(st.integers(0, len(shapes) - 1))
    shape = shapes[i]
    rank = len(shape)
    dim = draw(st.integers(0, rank - 1))
    order = draw(st.permutations(range(rank)))
    cut = draw(st.integers(0, shape[dim] - 1))
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "permute": lambda x: x.permute(order) * 1,
        "flatten": lambda x: x.reshape(-1, shape[-1]),
        "slice": lambda x: x.narrow(dim, cut, shape[dim] - cut),
        "select": lambda x: x.select(dim, cut) if rank > 1 else x.flip(0),
        "unbind": lambda x: x + x.unsqueeze(0).repeat(2, *[1] * rank).unbind(0)[1],
        "cat": lambda x: torch.cat([x, 2 * x], dim),
        "stack": lambda x: torch.stack([x, -x], 0) if rank < 4 else x + 1,
        "chunk": lambda x: torch.cat(x.split(max(1, shape[dim] // 2), dim)[::-1], dim),
        "rotate": lambda x: torch.cat([x.narrow(dim, cut, shape[dim] - cut), x.narrow(dim, 0, cut + 1)], dim),
        "pad": lambda x: F.pad(x, (1, 2)),
        "expand": lambda x: x.unsqueeze(0).expand(2, *shape) * 1 if rank < 4 else x - 1,
        "repeat": lambda x: x.repeat(*(2 if a == dim else 1 for a in range(rank))),
    }
    name = draw(st.sampled_from(sorted(kinds)))
    return Step(f"{name} {dim}", kinds[name], (i,))


KINDS = (smooth, kinked, binary, product, over_rows, movement)


@st.composite
def modules(draw: st.DrawFn) -> tuple[RandomModule, Tensor]:
    """A module of one to six steps, and its input."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=2, max_size=3))
    d = sizes[-1]
    weight_shapes = draw(st.lists(st.sampled_from([(d, d), (d,), (1, d), (d, 3), (2, d)]), min_size=1, max_size=3))
    x = grid(draw, tuple(sizes))
    weights = [grid(draw, shape) for shape in weight_shapes]
    values, steps = [x, *weights], []
    for _ in range(draw(st.integers(1, 6))):
        step = draw(st.sampled_from(KINDS))(draw, [tuple(v.shape) for v in values], 1 + len(weights))
        if step is None:
            continue
        values.append(step.function(*[values[i] for i in step.operands]))
        steps.append(step)
        assume(values[-1].numel() <= 4000 and values[-1].abs().max() <= LARGEST)
    assume(steps)
    return RandomModule(weights, steps), x


def captured(net: RandomModule) -> GraphModule:
    """The graph of a module as Dynamo captures it: parameters are inputs."""
    graph = Graph()
    tracer = GraphAppendingTracer(graph)
    inputs = [Proxy(graph.placeholder(f"input_{i}"), tracer) for i in range(1 + len(net.weights))]
    graph.output(tuple(result.node for result in net.results(inputs)))
    return GraphModule(nn.Module(), graph)


def compiled(net: RandomModule, x: Tensor, whole: bool) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """The module on the engine: all of the way by torch.compile, or from the captured graph on, which takes half."""
    options = {"strict": True}
    if whole:
        torch._dynamo.reset()
        return torch.compile(net, backend="anew", fullgraph=True, dynamic=False, options=options)
    call = anew(captured(net), [x, *net.weights], options=options)
    return lambda x: tuple(call(x, *net.weights))


def run(net: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Results and gradients for a cotangent that is not constant, in fp64."""
    x = x.clone().requires_grad_()
    results = net(x)
    loss = sum((y * torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y.dtype)).sum() for y in results)
    found = torch.autograd.grad(loss, [x, *parameters], allow_unused=True)
    return [t.detach().double() for t in (*results, *found) if t is not None]


@settings(
    max_examples=CASES,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(case=modules(), way=st.integers(0, 9))
def test_values_and_gradients(case: tuple[RandomModule, Tensor], way: int) -> None:
    net, x = case
    wanted = run(net, x, list(net.parameters()))
    assume(all(t.isfinite().all() and t.abs().max() <= LARGEST for t in wanted))
    half = copy.deepcopy(net).half()
    expected = run(half, x.half(), list(half.parameters()))
    single = copy.deepcopy(net).float()
    found = run(compiled(single, x.float(), whole=way == 0), x.float(), list(single.parameters()))
    names = [step.name for step in net.steps]
    for engine, torch_half, reference in zip(found, expected, wanted, strict=True):
        norm = reference.norm()
        allowed = SLACK * norm + FACTOR * (torch_half - reference).norm() + ROUNDING
        assert (engine - reference).norm() <= allowed, f"{names}: {engine} instead of {reference}"
