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
from torch.fx._lazy_graph_module import _use_lazy_graph_module

from anew.compiler.compile import Lowered, lower_graph
from anew.compiler.gains import Gain, log_gains
from anew.compiler.numbers import numbers_of_host, one_reader_each
from anew.errors import UserError
from anew.frontend.attention_blocks import split_queries
from anew.frontend.baking import Bank
from anew.frontend.canonical import canonicalize
from anew.frontend.decompositions import DECOMPOSITIONS
from anew.frontend.held import Instances, OfInstance
from anew.frontend.hoisting import detach_host_work
from anew.frontend.partition import partition
from anew.frontend.placement import host_operations, listed, report, returned_views, split
from anew.frontend.recompute import recompute
from anew.frontend.segment import Segment
from anew.frontend.session import CompiledGraph, Session
from anew.frontend.softmax_gradient import shorten_sums
from anew.frontend.statistics import take_statistics
from anew.frontend.structure import structure

Compiled = Callable[..., Any]


class Region:
    """Compiles the graphs that AOTAutograd makes of one captured graph, and runs them.

    The graph serves every layer of the same shape: parameters are arguments, and each instance is known by them.

    Args:
        session: whose device and options hold.
        module: a Dynamo graph of fixed sizes whose inputs and results are tensors; it is rewritten in place.
        inputs: tensors as it will be called with: shapes, types and ``requires_grad`` count, values do not.

    Raises UserError under autocast and on a parameter in half precision, and what compiler and device raise.
    """

    def __init__(self, session: Session, module: GraphModule, inputs: Sequence[Tensor]) -> None:
        if torch.is_autocast_enabled("cpu"):
            raise UserError(
                "this region is called under torch.autocast; regions take fp32 tensors and the engine computes in fp16 "
                "by itself: leave autocast away (Trainer: bf16=False, fp16=False)"
            )
        _check_float32(module, inputs)
        self.session = session
        self.parameters = [isinstance(x, torch.nn.Parameter) for x in inputs]
        self.frozen = [p and not x.requires_grad for p, x in zip(self.parameters, inputs, strict=True)]
        self.buffers = [not p and s for p, s in zip(self.parameters, _static(module), strict=True)]
        self.name = session.name_region()
        self.weights = session.weights
        self.instances = Instances()
        self.weight_names: set[str] = set()
        self.frozen_names: set[str] = set()
        self.buffer_names: set[str] = set()
        self.backward: Compiled | None = None
        self.module = module  # what the structure's key names by address must live
        self.run = self._compile_all(inputs)

    def __call__(self, *args: Tensor) -> Sequence[Any]:
        """Run the graph, differentiably."""
        if self.session.held:
            self.instances.remember(args)
        return self.run(*args)

    def _compile_all(self, inputs: Sequence[Tensor]) -> Compiled:
        statistics = take_statistics(self.module)
        for module in self.module.modules():
            if isinstance(module, GraphModule):
                canonicalize(module)
                self._log(split_queries(module, _differentiated(inputs), self.name, self.session.device.chip))
        functorch_config.donated_buffer = False  # or autograd refuses retain_graph=True, when it runs too
        with _use_lazy_graph_module(True):  # the graphs are read, not run: no Python is written for them
            compiled: Compiled = aot_module_simplified(
                self.module,
                list(inputs),
                fw_compiler=self._forward,
                bw_compiler=self._backward,
                inference_compiler=self._inference,
                partition_fn=self._partition,
                decompositions=DECOMPOSITIONS,
            )
        return statistics.wrap(compiled)

    def _partition(self, joint: GraphModule, inputs: Any, *, num_fwd_outputs: int, **kwargs: Any) -> Any:
        self.results = num_fwd_outputs
        shorten_sums(joint, self.session.device.chip.name)
        forward, backward = partition(joint, inputs, num_fwd_outputs=num_fwd_outputs, **kwargs)
        self._log(recompute(forward, backward, num_fwd_outputs, self.name, self.session.device.chip))
        return forward, backward

    def _log(self, found: list[Gain]) -> None:
        log_gains(found)
        self.session.gains += found

    def _forward(self, gm: GraphModule, example_inputs: Any) -> Compiled:
        return self._compile(gm, "forward", self._weight_kinds(gm), first_saved=self.results)

    def _inference(self, gm: GraphModule, example_inputs: Any) -> Compiled:
        return self._compile(gm, "inference", self._weight_kinds(gm), first_saved=None)

    def _backward(self, gm: GraphModule, example_inputs: Any) -> Compiled:
        names = [n.name for n in gm.graph.nodes if n.op == "placeholder"]
        kinds = {n: "cotangent" for n in names if n.startswith("tangents")}
        kinds.update({n: "weight" for n in names if n in self.weight_names})
        with self.session.lock:  # AOTAutograd asks at the first backward, of each thread that comes to it
            if self.backward is None:
                self.backward = self._compile(gm, "backward", kinds, first_saved=None)
                self._let_hold(self.backward, names)
        return self.backward

    def _let_hold(self, backward: Compiled, names: list[str]) -> None:
        """Let a backward program keep gradients in their buffers, if all of the graph is one program."""
        assert isinstance(backward, GraphCall)
        segment = backward.run
        if isinstance(segment, Segment) and segment.plan.result_count == len(self.parameters):
            read = {names.index(n): self.weight_positions[n] for n in names if n in self.weight_names}
            segment.holding = OfInstance(self.session.held, self.instances, read)

    def _weight_kinds(self, module: GraphModule) -> dict[str, str]:
        names = [n.name for n in module.graph.nodes if n.op == "placeholder"]
        if len(names) != len(self.parameters):
            raise RuntimeError(f"{self.name}: {len(names)} graph inputs for {len(self.parameters)} captured ones")
        self.weight_positions = {n: i for i, n in enumerate(names)}
        self.weight_names = {n for n, is_weight in zip(names, self.parameters, strict=True) if is_weight}
        self.frozen_names = {n for n, is_frozen in zip(names, self.frozen, strict=True) if is_frozen}
        self.buffer_names = {n for n, is_buffer in zip(names, self.buffers, strict=True) if is_buffer}
        return dict.fromkeys(self.weight_names, "weight")

    def _compile(self, module: GraphModule, direction: str, kinds: dict[str, str], first_saved: int | None) -> Compiled:
        with unset_fake_temporarily():  # AOTAutograd compiles under its fake tensors; a device needs real ones
            return self._compile_real(module, f"{self.name} {direction}", kinds, first_saved)

    def _compile_real(self, module: GraphModule, name: str, kinds: dict[str, str], first_saved: int | None) -> Compiled:
        detach_host_work(module)
        one_reader_each(module)
        found = host_operations(module, name, self.session.device.chip, self.buffer_names)
        report(listed(found), strict=self.session.options.strict)
        self.session.host_operations.extend(listed(found))
        self.session.graphs.append(CompiledGraph.of(module, name, set(found)))
        host = {*found, *returned_views(module), *numbers_of_host(module, set(found))}
        if host:
            run = split(module, name, host, kinds, first_saved, self._compile_segment)
            return GraphCall(name, run, self.session)
        count = len(module.graph.output_node().args[0])  # type: ignore[arg-type]
        saved = {i: first_saved is not None and i >= first_saved for i in range(count)}
        return GraphCall(name, self._compile_segment(module, name, kinds, saved), self.session)

    def _compile_segment(
        self, module: GraphModule, name: str, kinds: Mapping[str, str], saved: Mapping[int, bool]
    ) -> Segment:
        return self._segment(lower_graph(module, name, self.session.device.chip, kinds, saved))

    def _segment(self, lowered: Lowered) -> Segment:
        plan, session, bank = lowered.plan(), self.session, None
        session.plans.append(plan)
        if session.options.base_bits and self.frozen_names & {port.name for port in plan.inputs}:
            bank = Bank(session, self.weights, plan, lowered.plan, self.frozen_names)
            session.banks.add(bank)
        return session.segment(plan, lowered.plan, self.weights, bank)


def _differentiated(inputs: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def _check_float32(module: GraphModule, inputs: Sequence[Tensor]) -> None:
    for node, x in zip(module.graph.find_nodes(op="placeholder"), inputs, strict=True):
        if isinstance(x, torch.nn.Parameter) and x.is_floating_point() and x.dtype != torch.float32:
            raise UserError(f"parameter '{node.name}' is {x.dtype}; keep the model in float32, anew keeps fp32 masters")


def _static(module: GraphModule) -> list[bool]:
    """Of each placeholder of a Dynamo graph, whether it is a parameter or a buffer of a module."""
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    return ["_dynamo_static_input_type" in n.meta.get("tensor_dict", {}) for n in placeholders]


def region_for(session: Session, module: GraphModule, inputs: Sequence[Tensor]) -> Region:
    """The session's region for a graph called with such inputs: one for all graphs of equal structure."""
    key = structure(module, inputs)
    region = session.regions_by_structure.get(key)
    if region is None:
        region = session.regions_by_structure[key] = Region(session, module, inputs)
    return region


class GraphCall:
    """A compiled graph as AOTAutograd calls it: with one list, which is cleared to free what it held."""

    _boxed_call = True

    def __init__(self, name: str, run: Callable[[list[Tensor]], Any], session: Session) -> None:
        self.name = name
        self.run = run
        self.session = session

    def __call__(self, args: list[Tensor]) -> Any:
        """Run the graph on its arguments."""
        taken = list(args)
        args.clear()
        self.session.writes.wait(taken)
        with self.session.lock, torch.no_grad():
            self.session.counts.calls[self.name] += 1
            return self.run(taken)
