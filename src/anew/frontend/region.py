"""A region: one captured graph, its forward and backward compiled, on one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._functorch.aot_autograd import aot_module_simplified
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import GraphModule

from anew.compiler.compile import compile_graph
from anew.compiler.numbers import numbers_of_host, one_reader_each
from anew.errors import UserError
from anew.frontend.canonical import canonicalize
from anew.frontend.decompositions import DECOMPOSITIONS
from anew.frontend.partition import partition
from anew.frontend.placement import host_operations, report, returned_views, split
from anew.frontend.segment import Segment, WeightStore
from anew.frontend.segment import Statistics as Counts
from anew.frontend.session import CompiledGraph, Session
from anew.frontend.statistics import take_statistics
from anew.plan import Plan

Compiled = Callable[..., Any]


class Region:
    """Compiles the graphs that AOTAutograd makes of one captured graph.

    The graph serves every layer of the same shape: parameters are arguments, and each instance is known by them.
    """

    def __init__(self, session: Session, module: GraphModule, example_inputs: Sequence[Any]) -> None:
        if any(_is_symbolic(x) for x in example_inputs):
            raise UserError("the input sizes of this region vary; compile it with dynamic=False, once for each shape")
        self.session = session
        self.module = module
        self.example_inputs = example_inputs
        self.parameters = [isinstance(x, torch.nn.Parameter) for x in example_inputs]
        self.name = session.name_region()
        self.weights = WeightStore(session.device)
        self.weight_names: set[str] = set()

    def compile(self) -> Compiled:
        """Return a callable with the captured graph's signature."""
        statistics = take_statistics(self.module)
        canonicalize(self.module)
        functorch_config.donated_buffer = False  # or autograd refuses retain_graph=True, when it runs too
        compiled: Compiled = aot_module_simplified(
            self.module,
            list(self.example_inputs),
            fw_compiler=self._forward,
            bw_compiler=self._backward,
            inference_compiler=self._inference,
            partition_fn=self._partition,
            decompositions=DECOMPOSITIONS,
        )
        return statistics.wrap(compiled)

    def _partition(self, joint: GraphModule, inputs: Any, *, num_fwd_outputs: int, **kwargs: Any) -> Any:
        self.results = num_fwd_outputs
        return partition(joint, inputs, num_fwd_outputs=num_fwd_outputs, **kwargs)

    def _forward(self, gm: GraphModule, example_inputs: Any) -> Compiled:
        return self._compile(gm, "forward", self._weight_kinds(gm), first_saved=self.results)

    def _inference(self, gm: GraphModule, example_inputs: Any) -> Compiled:
        return self._compile(gm, "inference", self._weight_kinds(gm), first_saved=None)

    def _backward(self, gm: GraphModule, example_inputs: Any) -> Compiled:
        names = [n.name for n in gm.graph.nodes if n.op == "placeholder"]
        kinds = {n: "cotangent" for n in names if n.startswith("tangents")}
        kinds.update({n: "weight" for n in names if n in self.weight_names})
        return self._compile(gm, "backward", kinds, first_saved=None)

    def _weight_kinds(self, module: GraphModule) -> dict[str, str]:
        names = [n.name for n in module.graph.nodes if n.op == "placeholder"]
        if len(names) != len(self.parameters):
            raise RuntimeError(f"{self.name}: {len(names)} graph inputs for {len(self.parameters)} captured ones")
        self.weight_names = {n for n, is_weight in zip(names, self.parameters, strict=True) if is_weight}
        return dict.fromkeys(self.weight_names, "weight")

    def _compile(self, module: GraphModule, direction: str, kinds: dict[str, str], first_saved: int | None) -> Compiled:
        with unset_fake_temporarily():  # AOTAutograd compiles under its fake tensors; a device needs real ones
            return self._compile_real(module, f"{self.name} {direction}", kinds, first_saved)

    def _compile_real(self, module: GraphModule, name: str, kinds: dict[str, str], first_saved: int | None) -> Compiled:
        chip = self.session.device.chip
        one_reader_each(module)
        refused = host_operations(module, name, chip)
        report(list(refused.values()), strict=self.session.options.strict)
        self.session.host_operations.extend(refused.values())
        self.session.graphs.append(CompiledGraph.of(module, name, set(refused)))
        host = {*refused, *returned_views(module), *numbers_of_host(module, set(refused))}
        if host:
            return GraphCall(name, split(module, name, host, kinds, self._whole_segment), self.session.counts)
        count = len(module.graph.output_node().args[0])  # type: ignore[arg-type]
        saved = {i: first_saved is not None and i >= first_saved for i in range(count)}
        return GraphCall(name, self._segment(compile_graph(module, name, chip, kinds, saved)), self.session.counts)

    def _whole_segment(self, module: GraphModule, name: str, kinds: Mapping[str, str]) -> Segment:
        """A segment all of whose results the host reads."""
        return self._segment(compile_graph(module, name, self.session.device.chip, kinds, {}))

    def _segment(self, plan: Plan) -> Segment:
        self.session.plans.append(plan)
        return Segment(plan, self.session.device, self.weights, self.session.counts, self.session.options.scaling)


def _is_symbolic(x: Any) -> bool:
    sizes = tuple(x.shape) if isinstance(x, Tensor) else (x,)
    return any(isinstance(n, torch.SymInt) for n in sizes)


class GraphCall:
    """A compiled graph as AOTAutograd calls it: with one list, which is cleared to free what it held."""

    _boxed_call = True

    def __init__(self, name: str, run: Callable[[list[Tensor]], Any], counts: Counts) -> None:
        self.name = name
        self.run = run
        self.counts = counts

    def __call__(self, args: list[Tensor]) -> Any:
        """Run the graph on its arguments."""
        self.counts.calls[self.name] += 1
        taken = list(args)
        args.clear()
        with torch.no_grad():
            return self.run(taken)
