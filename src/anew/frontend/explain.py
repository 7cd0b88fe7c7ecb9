"""``anew.explain(model, inputs)``: what of one training step runs on the engine, what on the host, and why.

The step is run on a copy of the model and on the null device: everything is captured, compiled and bound as for the
engine, host operations run, programs compute nothing. The step is one that measures magnitudes; where frozen weights
are constants it is one of those between, which alone have these.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from anew.compiler.gains import Gain, gains
from anew.device.buffers import BufferPool
from anew.errors import UserError
from anew.frontend.baking import BakedUse
from anew.frontend.layers import has_repeated_layers
from anew.frontend.loss.causal_lm import verdict_of
from anew.frontend.loss.check import LossVerdict
from anew.frontend.model import compile_in, options_of
from anew.frontend.options import Options
from anew.frontend.placement import PlacementWarning
from anew.frontend.recorder import HostRecorder
from anew.frontend.region import GraphCall
from anew.frontend.session import Session
from anew.frontend.typical import TypicalScales
from anew.frontend.whole_model import by_layers
from anew.plan import Plan

OUTSIDE = "outside every region"
OUTSIDE_RULE = "not in a repeated layer"


@dataclass(frozen=True)
class ProgramUse:
    """A program and its part in one step.

    Attributes:
        name: the region and direction it computes.
        dispatches: how often it runs.
        operations: MIL operations by kind.
        flops: floating-point operations of one run.
        bytes_in, weight_bytes, bytes_out: what one run reads from its activation and scale ports, what its weights take
            (uploaded once a step and layer), what it writes; rows strided as the chip wants them.
        constant_bytes: what the constants take that frozen weights became, of all layers.
    """

    name: str
    dispatches: int
    operations: dict[str, int]
    flops: int
    bytes_in: int
    weight_bytes: int
    bytes_out: int
    constant_bytes: int = 0

    @classmethod
    def of(cls, plan: Plan, dispatches: int, pool: BufferPool, constant_bytes: int = 0) -> ProgramUse:
        """The use of a plan's program whose buffers come from ``pool``."""

        def taken(*shapes: tuple[int, ...]) -> int:
            return sum(pool.nbytes(shape) for shape in shapes)

        weights = [p.shape for p in plan.inputs if p.kind == "weight"]
        others = [p.shape for p in plan.inputs if p.kind != "weight"] + _rows(plan.scales.scale_rows)
        results = [p.shape for p in plan.outputs] + _rows(plan.scales.maxima_rows)
        moved = taken(*others), taken(*weights), taken(*results)
        return cls(plan.name, dispatches, plan.operations, plan.flops, *moved, constant_bytes)


def _rows(count: int) -> list[tuple[int, ...]]:
    """The shape of a port with that many scales or maxima, if there is one."""
    return [(count, 1)] if count else []


@dataclass(frozen=True)
class HostUse:
    """An operation on the host and its part in one step.

    Attributes:
        where: the region and direction, or ``outside every region``.
        operation, shape: the ATen operation and the shape of its result.
        calls: how often it runs. flops: matmul and convolution flops of all its calls.
        rule: what keeps it off the engine. source: the model's line.
        kind: ``outside`` of every region; of a region's, ``boundary`` or ``fallback`` (:class:`HostOperation`).
    """

    where: str
    operation: str
    shape: tuple[int, ...]
    calls: int
    flops: int
    rule: str
    source: str
    kind: str


@dataclass(frozen=True)
class Explanation:
    """One training step of a model, taken apart. ``str()`` gives a table, ``as_dict()`` the data.

    Attributes:
        chip: whose limits held.
        regions: graphs captured.
        programs: each program's part in the step.
        host: each host operation's part, the dearest first.
        loss: whether head and loss are a loss region; None where there are none, or with ``loss="apart"``.
        baked: with ``base_bits``, what became of the frozen weights of each program.
        gains: what the compiler spared each program, with times that are projected.
        engine_operations, host_operations: ATen operations of the step by where they run, views not counted.
        engine_flops, host_flops: matmul and convolution flops of the step by where they run.
    """

    chip: str
    regions: int
    programs: tuple[ProgramUse, ...]
    host: tuple[HostUse, ...]
    loss: LossVerdict | None
    engine_operations: int
    host_operations: int
    engine_flops: int
    host_flops: int
    baked: tuple[BakedUse, ...] = ()
    gains: tuple[Gain, ...] = ()

    @property
    def dispatches(self) -> int:
        """Programs run in a step."""
        return sum(p.dispatches for p in self.programs)

    @property
    def bytes_moved(self) -> int:
        """Bytes that pass the boundary in a step, both ways, weights counted for each run that reads them."""
        return sum(p.dispatches * (p.bytes_in + p.weight_bytes + p.bytes_out) for p in self.programs)

    @property
    def coverage(self) -> float:
        """Part of the step's matmul and convolution flops that run on the engine, 0 to 1."""
        return _part(self.engine_flops, self.host_flops)

    @property
    def coverage_by_count(self) -> float:
        """Part of the step's operations that run on the engine, 0 to 1."""
        return _part(self.engine_operations, self.host_operations)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain data."""
        derived = ("dispatches", "bytes_moved", "coverage", "coverage_by_count")
        return asdict(self) | {name: getattr(self, name) for name in derived}

    def __str__(self) -> str:
        from anew.frontend.explain_table import table

        return table(self)


def _part(engine: int, host: int) -> float:
    return engine / (engine + host) if engine + host else 0.0


def explain(model: nn.Module, inputs: Any, *, chip: str | None = None) -> Explanation:
    """Explain one training step (forward and backward) of a model.

    Args:
        model: any module; compiled by :func:`anew.compile` or not. It is copied and stays as it is.
        inputs: what the model is called with: a mapping of keyword arguments, a tuple of arguments, or one tensor.
            The step differentiates the result's ``loss`` if it has one, otherwise the sum of its float tensors.
        chip: whose limits hold; that of the compiled model, or ``m4``.

    Raises UserError when a model's result has nothing to differentiate, and whatever the model itself raises.
    """
    options = options_of(model) or Options()
    session = Session(replace(options, device="null", strict=False, chip=chip or options.chip))
    session.scales = scales = TypicalScales()
    net = _compiled(copy.deepcopy(getattr(model, "_orig_mod", model)), session)
    recorder = HostRecorder(_step.__code__, {GraphCall.__call__.__code__})
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore", PlacementWarning)  # every one of them is a row of the result
        _step(net, inputs)
        scales.measures = not any(bank.bakes for bank in session.banks)
        before = copy.deepcopy(session.counts)
        with recorder:
            _step(net, inputs)
    calls, dispatches = session.counts.calls - before.calls, session.counts.dispatches - before.dispatches
    host = [*_outside(recorder), *_in_regions(session, calls)]
    return Explanation(
        chip=session.device.chip.name,
        regions=session.regions,
        programs=tuple(_programs(session, dispatches)),
        host=tuple(sorted(host, key=lambda use: (-use.flops, -use.calls * math.prod(use.shape)))),
        loss=verdict_of(net),
        engine_operations=sum(calls[g.name] * g.engine for g in session.graphs),
        host_operations=sum(use.calls for use in host),
        engine_flops=sum(calls[g.name] * g.engine_flops for g in session.graphs),
        host_flops=sum(use.flops for use in host),
        baked=session.baked(),
        gains=(*session.gains, *(g for plan in session.plans for g in gains(plan, session.device.chip.name))),
    )


def _programs(session: Session, dispatches: Counter[str]) -> Iterator[ProgramUse]:
    pool = session.device.buffers
    lean = {plan.name: plan for plan in session.lean_plans}
    for plan in session.plans:
        yield ProgramUse.of(lean.get(plan.name, plan), dispatches[plan.name], pool)
    for bank in sorted(session.banks, key=lambda bank: bank.plan.name):
        plan, use = bank.baked_plan(), bank.use()
        if use.layers:
            yield ProgramUse.of(plan, dispatches[plan.name], pool, use.bytes)


def _compiled(model: nn.Module, session: Session) -> nn.Module:
    """The model with its repeated layers compiled, or compiled as a whole when it has none."""
    if has_repeated_layers(model):
        return compile_in(model, session)

    def backend(module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return by_layers(session, module)

    whole: nn.Module = torch.compile(model, backend=backend, dynamic=False)  # type: ignore[assignment]
    return whole


def _outside(recorder: HostRecorder) -> list[HostUse]:
    return [
        HostUse(OUTSIDE, call.operation, call.shape, calls, recorder.flops[call], OUTSIDE_RULE, call.source, "outside")
        for call, calls in recorder.calls.items()
    ]


def _in_regions(session: Session, calls: Counter[str]) -> list[HostUse]:
    return [
        HostUse(h.region, h.operation, h.shape, calls[h.region], calls[h.region] * h.flops, h.rule, h.source, h.kind)
        for h in session.host_operations
    ]


def _step(net: nn.Module, inputs: Any) -> None:
    """One training step; its gradients are dropped."""
    if isinstance(inputs, Mapping):
        result = net(**inputs)
    else:
        result = net(*inputs) if isinstance(inputs, (tuple, list)) else net(inputs)
    loss = getattr(result, "loss", None)
    found = [loss] if isinstance(loss, Tensor) else [x for x in tree_leaves(result) if isinstance(x, Tensor)]
    wanted = [x.sum() for x in found if x.requires_grad]
    if not wanted:
        raise UserError("nothing in this model's result depends on a parameter; there is no training step to explain")
    parameters = [p for p in net.parameters() if p.requires_grad]
    torch.autograd.grad(wanted, parameters, allow_unused=True)
