"""Compile an ATen graph into a plan: lower every node, run the passes, print MIL."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from anew.chips import Chip
from anew.chips.check import check_op, refused
from anew.chips.rules import extents
from anew.compiler.gains import gains, log_gains
from anew.compiler.lowering import TABLE, Lowering, NotLowered, shape_of
from anew.compiler.numbers import number_of
from anew.compiler.passes.common_subexpressions import common_subexpressions
from anew.compiler.passes.merge_pads import merge_pads
from anew.compiler.passes.numbers_on_factors import numbers_on_factors
from anew.compiler.passes.scale_operands import Scaled, scale_operands
from anew.compiler.passes.sink_reshapes import sink_reshapes
from anew.compiler.passes.turn_products import turn_products
from anew.compiler.transposes import is_left_to_product
from anew.mil import Function, MilError, Program, Value, lookup, print_program, rule_operands
from anew.plan import UNKNOWN, InputPort, OutputPort, Plan


def lower_graph(
    module: GraphModule, name: str, chip: Chip, kinds: Mapping[str, str], saved: Mapping[int, bool]
) -> Lowered:
    """Lower a graph of ATen operations.

    Args:
        module: a graph as AOTAutograd gives it, with ``val`` metadata.
        name: names the plan in messages.
        chip: whose limits hold.
        kinds: ``weight`` or ``cotangent`` by placeholder name; every other placeholder is an activation.
        saved: whether a result (by position) is only read by the backward graph.

    Raises NotLowered naming the operation, its shapes and the rule when a node cannot run on the engine.
    """
    low = Lowering(chip)
    values = _lower_nodes(module.graph, low)
    results = _results(module.graph)
    computed = _computed_results(results, values, low)
    function, positions = _merge_equal_outputs(
        _simplified(low.builder.function(list(computed))), list(computed.values())
    )
    _check_transposes(function, name, chip)
    linear = depends_on(module.graph, {n for n, kind in kinds.items() if kind == "cotangent"})
    return Lowered(
        name=name,
        chip=chip,
        function=function,
        ports={n.name: (i, kinds.get(n.name, "activation")) for i, n in enumerate(_placeholders(module.graph))},
        positions=positions,
        saved=frozenset(i for i, at in enumerate(positions) if all(saved.get(p, False) for p in at)),
        linear=frozenset(i for i, at in enumerate(positions) if results[at[0]].name in linear),
        passed=tuple((i, _argument(module.graph, n)) for i, n in results.items() if n.op == "placeholder"),
        truths=tuple(i for i, n in results.items() if n.meta["val"].dtype == torch.bool),
        result_count=len(_output_args(module.graph)),
    )


@dataclass(frozen=True)
class Lowered:
    """A graph as a MIL function without operand scales, of which plans are made.

    Attributes:
        name: of the plans. chip: whose limits hold.
        ports: argument of the graph and kind, by the placeholder's name.
        positions: of the function's outputs, those among the graph's results. saved, linear: which outputs are.
        passed, truths, result_count: as in :class:`Plan`.
    """

    name: str
    chip: Chip
    function: Function
    ports: dict[str, tuple[int, str]]
    positions: list[list[int]]
    saved: frozenset[int]
    linear: frozenset[int]
    passed: tuple[tuple[int, int], ...]
    truths: tuple[int, ...]
    result_count: int

    def plan(self, plain: frozenset[int] | None = None) -> Plan:
        """The plan that measures; with numbers of products, the lean one in which these have no scales."""
        weights = {name for name, (_, kind) in self.ports.items() if kind == "weight"}
        read = [i for i in range(len(self.positions)) if i not in self.saved]
        scaled = scale_operands(self.function, weights, read, plain)
        text, blob = print_program(Program({"main": scaled.function}))
        plan = Plan(
            name=self.name,
            text=text,
            weights=blob,
            inputs=self._input_ports(scaled),
            outputs=self._output_ports(scaled),
            passed=self.passed,
            truths=self.truths,
            result_count=self.result_count,
            scales=scaled.scales,
            flops=_flops(scaled.function),
            operations=dict(Counter(op.kind for op in scaled.function.ops if op.kind != "const")),
            spared=scaled.spared,
        )
        log_gains(gains(plan, self.chip.name))
        return plan

    def _input_ports(self, scaled: Scaled) -> tuple[InputPort, ...]:
        used = {v.name: v for v in scaled.function.inputs}
        operands, rows = scaled.weight_operands, scaled.port_rows
        return tuple(
            InputPort(name, argument, used[name].shape, kind, operands.get(name), rows.get(name))
            for name, (argument, kind) in self.ports.items()
            if name in used
        )

    def _output_ports(self, scaled: Scaled) -> tuple[OutputPort, ...]:
        return tuple(
            OutputPort(
                value.name,
                value.shape,
                tuple(self.positions[i]),
                saved=i in self.saved,
                linear=i in self.linear,
                product=scaled.output_products.get(i),
                maximum_row=scaled.output_rows.get(i),
                bound=scaled.output_bounds.get(i, UNKNOWN),
            )
            for i, value in enumerate(scaled.function.outputs[: len(self.positions)])
        )


def why_not(node: Node, chip: Chip) -> str | None:
    """Return the rule that keeps one node off the engine, or None when it lowers."""
    try:
        _lower_apart([node], Lowering(chip))
    except (NotLowered, MilError) as error:
        return str(error)
    return None


def lower_part(nodes: Sequence[Node], results: Sequence[Node], chip: Chip) -> Function:
    """Return the function that some nodes of a graph are, in its order; what else they read enters by ports.

    Raises NotLowered or MilError when a node cannot run on the engine.
    """
    low = Lowering(chip)
    values = _lower_apart(nodes, low)
    outputs = [v for n in results for v in _tensors(values[n])]
    return common_subexpressions(low.builder.function(outputs))


def _lower_apart(nodes: Sequence[Node], low: Lowering) -> dict[Node, Any]:
    given = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in nodes)
    values: dict[Node, Any] = {n: _port(low, n) if number_of(n) is None else number_of(n) for n in given}
    for node in nodes:
        values[node] = _lower(node, low, values)
    return values


def _lower_nodes(graph: Graph, low: Lowering) -> dict[Node, Any]:
    read = [n for n in _placeholders(graph) if any(user.op != "output" for user in n.users)]
    values: dict[Node, Any] = {n: _port(low, n) for n in read}  # first, so that no other value takes a port's name
    for node in graph.nodes:
        if node.op == "call_function":
            values[node] = _lower(node, low, values)
        elif node.op not in ("placeholder", "output"):
            raise NotLowered(f"'{node.name}': a graph node of kind {node.op}")
    return values


def _port(low: Lowering, node: Node) -> Any:
    val = node.meta["val"]
    if isinstance(val, (tuple, list)):
        return [None if v is None else low.builder.input(f"{node.name}_{i}", v.shape) for i, v in enumerate(val)]
    _check_tensor(node, val, low.chip, least_rank=0)  # a tensor without axes enters as one of one axis
    return low.builder.input(node.name, shape_of(node) or (1,))


def _check_tensor(node: Node, val: Any, chip: Chip, least_rank: int = 1) -> None:
    if not isinstance(val, torch.Tensor):
        raise NotLowered(f"'{node.name}' is {type(val).__name__}, not a tensor")
    if val.dtype not in (torch.float32, torch.bool):  # a bool tensor is the numbers 1 and 0
        raise NotLowered(f"'{node.name}' is {val.dtype}; a region takes and gives torch.float32")
    shape = list(val.shape)
    if any(not isinstance(n, int) for n in shape):
        raise NotLowered(f"'{node.name}' has a symbolic shape {shape}; compile with dynamic=False")
    if len(shape) < least_rank:
        raise NotLowered(f"'{node.name}' has rank 0; a region takes and gives tensors of rank 1 and more")
    for rule, row in extents(shape, chip):
        raise NotLowered(f"'{node.name}' {shape} {rule} ({chip.row(row).source})")


def _lower(node: Node, low: Lowering, values: Mapping[Node, Any]) -> Any:
    if node.target is operator.getitem:
        source, index = node.args
        return values[source][index]  # type: ignore[index]
    if (number := number_of(node)) is not None:
        return number
    function = TABLE.get(node.target)
    if function is None:
        raise NotLowered(f"'{node.target}' has no lowering")
    for val in _tensors(node.meta.get("val")):
        _check_tensor(node, val, low.chip)
    args = torch.fx.map_arg(node.args, lambda n: values[n])
    kwargs = torch.fx.map_arg(node.kwargs, lambda n: values[n])
    before = len(low.builder.ops)
    try:
        result = function(low, node, *args, **kwargs)
    except MilError as error:
        raise NotLowered(f"'{node.target}': {error}") from error
    for op in low.builder.ops[before:]:
        if op.kind == "transpose" and is_left_to_product(node):
            continue
        for violation in refused(check_op(op, low.chip, low.builder.producer)):
            raise NotLowered(f"'{node.target}': {violation}")
    return result


def _check_transposes(function: Function, name: str, chip: Chip) -> None:
    """Check what products should have taken over."""
    producers = {v: op for op in function.ops for v in op.outputs}
    for op in function.ops:
        if op.kind == "transpose":
            for violation in refused(check_op(op, chip, producers.get)):
                raise NotLowered(f"'{name}': {violation}")


def _simplified(function: Function) -> Function:
    function = numbers_on_factors(turn_products(sink_reshapes(function)))
    return merge_pads(common_subexpressions(function))


def _tensors(val: Any) -> list[Any]:
    return [v for v in val if v is not None] if isinstance(val, (tuple, list)) else [val]


def _placeholders(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if n.op == "placeholder"]


def _argument(graph: Graph, node: Node) -> int:
    return _placeholders(graph).index(node)


def _output_args(graph: Graph) -> list[Any]:
    (args,) = graph.output_node().args
    return list(args) if isinstance(args, (tuple, list)) else [args]


def _results(graph: Graph) -> dict[int, Node]:
    """The graph's results by position; positions without a tensor (None) are left out."""
    return {i: n for i, n in enumerate(_output_args(graph)) if isinstance(n, Node)}


def _computed_results(results: Mapping[int, Node], values: Mapping[Node, Any], low: Lowering) -> dict[Value, list[int]]:
    """The values that results have, with the positions that share each; no port is both input and output."""
    computed: dict[Value, list[int]] = {}
    copies: dict[Value, Value] = {}
    for position, node in results.items():
        if node.op == "placeholder":
            continue
        value = values[node]
        producer = low.builder.producer(value)
        if producer is None or producer.kind == "const":
            value = copies.get(value) or copies.setdefault(value, low.op("mul", x=value, y=1.0))
        computed.setdefault(value, []).append(position)
    return computed


def _merge_equal_outputs(function: Function, positions: list[list[int]]) -> tuple[Function, list[list[int]]]:
    """Give results that the passes found equal one output port."""
    merged: dict[Value, list[int]] = {}
    for value, at in zip(function.outputs, positions, strict=True):
        merged.setdefault(value, []).extend(at)
    function.outputs = list(merged)
    return function, list(merged.values())


def depends_on(graph: Graph, sources: set[str]) -> set[str]:
    """Names of the nodes that depend on the named placeholders."""
    reached = set(sources)
    for node in graph.nodes:
        if any(n.name in reached for n in node.all_input_nodes):
            reached.add(node.name)
    return reached


def _flops(function: Function) -> int:
    total = 0
    for op in function.ops:
        if op.constant:
            continue
        definition = lookup(op.kind)
        total += definition.flops(op.outputs[0].type, **rule_operands(definition, op.inputs))
    return total
