"""A session: one set of options, one device, everything compiled for it."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch._dynamo.convert_frame import compile_lock
from torch.fx import GraphModule, Node

from anew.compiler.gains import Gain
from anew.device.base import Device
from anew.frontend.choice import make_device
from anew.frontend.held import HeldGradients, Writes
from anew.frontend.options import Options
from anew.frontend.placement import HostOperation
from anew.frontend.recorder import node_flops
from anew.frontend.scale_store import ScaleStore
from anew.frontend.segment import Segment
from anew.frontend.segment import Statistics as Counts
from anew.frontend.weight_store import WeightStore
from anew.plan import Plan

if TYPE_CHECKING:
    from anew.frontend.baking import BakedUse, Bank
    from anew.frontend.loss.check import LossVerdict
    from anew.frontend.loss.region import LossRegion


class BudgetWarning(UserWarning):
    """So many programs are loaded that new shapes will soon find no room."""


@dataclass(frozen=True)
class Statistics:
    """What a session has done so far, or since a model was compiled.

    Models compiled with equal options share a session, and with it programs: they count for each of them.

    Attributes:
        device: the device in use. emulated: True when no silicon computed. chip, numerics: as chosen.
        why: which routes to the engine ``auto`` passed over, with the reasons.
        programs: programs loaded. dispatches: programs run. regions: graphs compiled.
        seconds: what those runs took, host work between them left out.
        rescaled: region calls run again because a value outgrew its scale. calibrations: runs spent on first calls.
        host_operations: graph nodes that run on the host, by design or as a fallback, each with the rule that keeps it
            off the engine.
        loss: whether head and loss are a loss region; None where there are none, or with ``loss="apart"``.
        baked: with ``base_bits``, what became of the frozen weights of each program.
        stale: constants found to be no longer the weights they were made from, by layer and program; they were dropped.
    """

    device: str
    emulated: bool
    chip: str
    numerics: str
    programs: int
    dispatches: int
    regions: int
    rescaled: int
    calibrations: int
    host_operations: tuple[HostOperation, ...]
    loss: LossVerdict | None = None
    why: str = ""
    seconds: float = 0.0
    baked: tuple[BakedUse, ...] = ()
    stale: int = 0

    def since(self, before: Statistics) -> Statistics:
        """What was done after ``before``; programs and regions stay those loaded in all."""
        return replace(
            self,
            dispatches=self.dispatches - before.dispatches,
            rescaled=self.rescaled - before.rescaled,
            calibrations=self.calibrations - before.calibrations,
            seconds=self.seconds - before.seconds,
            stale=self.stale - before.stale,
        )


@dataclass(frozen=True)
class CompiledGraph:
    """What became of one graph's nodes.

    Attributes:
        name: as in messages, such as ``region 1 forward``.
        engine: nodes that run on the engine. host: nodes that run on the host.
        engine_flops, host_flops: their matmul and convolution flops, by PyTorch's own formulas.
    """

    name: str
    engine: int
    host: int
    engine_flops: int
    host_flops: int

    @classmethod
    def of(cls, module: GraphModule, name: str, host: set[Node]) -> CompiledGraph:
        """Count a graph's nodes, views and the taking apart of tuples left out."""
        nodes = [n for n in module.graph.nodes if n.op == "call_function" and not getattr(n.target, "is_view", True)]
        flops = {n: node_flops(n) for n in nodes}
        return cls(
            name,
            sum(n not in host for n in nodes),
            sum(n in host for n in nodes),
            sum(flops[n] for n in nodes if n not in host),
            sum(flops[n] for n in nodes if n in host),
        )


class Session:
    """Shared by every region compiled with the same options. ``device`` stands in for the one that they name."""

    def __init__(self, options: Options, device: Device | None = None) -> None:
        self.options = options
        self.device = device or make_device(options)
        self.counts = Counts()
        self.scales = ScaleStore()
        self.weights = WeightStore(self.device)
        self.held = HeldGradients()
        self.writes = Writes()
        self.plans: list[Plan] = []
        #: Those with all weights as inputs; others are the banks'.
        self.lean_plans: list[Plan] = []
        #: What choices spared that concern the two programs of a region; those of one program are in its plan.
        self.gains: list[Gain] = []
        self.banks: weakref.WeakSet[Bank] = weakref.WeakSet()
        self.regions = 0
        self.warned_of_budget = False
        self.host_operations: list[HostOperation] = []
        self.graphs: list[CompiledGraph] = []
        #: Held while the session compiles and while a program runs: a device does one thing at a time. Dynamo's own
        #: lock, because torch.fx replaces nn.Module.__call__ while it traces, and Dynamo must not see that.
        self.lock = compile_lock
        self.regions_by_structure: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        self.loss: LossRegion | None = None

    def name_region(self) -> str:
        """Return a name for the next region; warns once when a quarter of the programs that a process may load are."""
        self.regions += 1
        loaded, most = self.device.statistics.programs, self.device.chip.loaded_programs
        if 4 * loaded >= most and not self.warned_of_budget:
            self.warned_of_budget = True
            warnings.warn(
                f"{loaded} programs are loaded, of the {most} that {self.device.chip.name} takes in a process; each "
                "new shape of an input makes a forward and a backward program: pad batches to few lengths, and keep "
                "the last batch whole (data collator: pad_to_multiple_of=..., data loader: drop_last=True)",
                BudgetWarning,
                stacklevel=2,
            )
        return f"region {self.regions}"

    def segment(
        self, plan: Plan, make_lean: Callable[[frozenset[int]], Plan], weights: WeightStore, bank: Bank | None = None
    ) -> Segment:
        """A plan at work; ``make_lean`` makes its lean ones. Raises what the device raises."""

        def lean(plain: frozenset[int]) -> Plan:
            self.lean_plans.append(made := make_lean(plain))
            return made

        return Segment(plan, lean, self.device, weights, self.scales, self.counts, self.options.scaling, bank)

    def statistics(self) -> Statistics:
        """Return the counts so far."""
        return Statistics(
            device=self.device.name,
            emulated=self.device.emulated,
            chip=self.device.chip.name,
            numerics=self.options.numerics,
            programs=self.device.statistics.programs,
            dispatches=self.device.statistics.dispatches,
            regions=self.regions,
            rescaled=self.counts.rescaled,
            calibrations=self.counts.calibrations,
            host_operations=tuple(self.host_operations),
            why=self.device.why,
            seconds=self.device.statistics.seconds,
            baked=self.baked(),
            stale=self.counts.stale,
        )

    def baked(self) -> tuple[BakedUse, ...]:
        """What became of the frozen weights of each program, by its name."""
        return tuple(sorted((bank.use() for bank in self.banks), key=lambda use: use.name))

    def check_baked(self) -> None:
        """Compare every baked weight with what it was made from; those that changed become inputs again."""
        with self.lock:
            for bank in list(self.banks):
                bank.check()


@functools.cache
def session_for(options: Options) -> Session:
    """The session of these options, one a process: a second model of the same shape finds its programs loaded."""
    return Session(options)
