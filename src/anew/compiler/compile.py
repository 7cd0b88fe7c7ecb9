"""Compile an ATen graph into a plan: lower every node, run the passes, print MIL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from anew.chips import Chip
from anew.compiler.lowering import TABLE, Lowering, NotLowered, shape_of
from anew.compiler.passes.common_subexpressions import common_subexpressions
from anew.compiler.passes.merge_pads import merge_pads
from anew.compiler.passes.scale_operands import Scaled, scale_operands
from anew.mil import Function, MilError, Program, Value, lookup, print_program
from anew.plan import InputPort, OutputPort, Plan

#: Element types that a region's boundary takes as numbers of a program.
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def compile_graph(
    module: GraphModule, name: str, chip: Chip, kinds: Mapping[str, str], saved: Mapping[int, bool]
) -> Plan:
    """Compile a graph of ATen operations.

    Args:
        module: a graph as AOTAutograd gives it, with ``val`` metadata.
        name: names the plan in messages.
        chip: whose limits hold.
        kinds: ``weight`` or ``cotangent`` by placeholder name; every other placeholder is an activation.
        saved: whether a result (by position) is only read by the backward graph.

    Raises NotLowered naming the operation, its shapes and the rule when a node cannot run on the engine.
    """
    low = Lowering()
    values = _lower_nodes(module.graph, low, chip)
    results = _results(module.graph)
    computed = _computed_results(results, values, low)
    function = merge_pads(common_subexpressions(low.builder.function(list(computed))))
    weights = {n.name for n in _placeholders(module.graph) if kinds.get(n.name) == "weight"}
    linear = depends_on(module.graph, {n for n, kind in kinds.items() if kind == "cotangent"})
    positions = [tuple(positions) for positions in computed.values()]
    checked = [i for i, at in enumerate(positions) if not all(saved.get(p, False) for p in at)]
    scaled = scale_operands(function, weights, checked)
    outputs = [
        OutputPort(
            value.name,
            value.shape,
            positions[i],
            saved=i not in checked,
            linear=results[positions[i][0]].name in linear,
            product=scaled.output_products.get(i),
        )
        for i, value in enumerate(scaled.function.outputs[: len(positions)])
    ]
    text, blob = print_program(Program({"main": scaled.function}))
    return Plan(
        name=name,
        text=text,
        weights=blob,
        inputs=_input_ports(module.graph, scaled, kinds),
        outputs=tuple(outputs),
        passed=tuple((i, _argument(module.graph, n)) for i, n in results.items() if n.op == "placeholder"),
        result_count=len(_output_args(module.graph)),
        scales=scaled.scales,
        flops=_flops(scaled.function),
        operations=dict(Counter(op.kind for op in scaled.function.ops if op.kind != "const")),
    )


def why_not(node: Node, chip: Chip) -> str | None:
    """Return the rule that keeps one node off the engine, or None when it lowers."""
    low = Lowering()
    try:
        values = {n: _port(low, n, chip) for n in node.all_input_nodes}
        _lower(node, low, values, chip)
    except (NotLowered, MilError) as error:
        return str(error)
    return None


def _lower_nodes(graph: Graph, low: Lowering, chip: Chip) -> dict[Node, Any]:
    values: dict[Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            if node.users and any(user.op != "output" for user in node.users):
                values[node] = _port(low, node, chip)
        elif node.op == "call_function":
            values[node] = _lower(node, low, values, chip)
        elif node.op != "output":
            raise NotLowered(f"'{node.name}': a graph node of kind {node.op}")
    return values


def _port(low: Lowering, node: Node, chip: Chip) -> Any:
    val = node.meta["val"]
    if isinstance(val, (tuple, list)):
        return tuple(low.builder.input(f"{node.name}_{i}", tuple(v.shape)) for i, v in enumerate(val))
    _check_tensor(node, val, chip)
    return low.builder.input(node.name, shape_of(node))


def _check_tensor(node: Node, val: Any, chip: Chip) -> None:
    if not isinstance(val, torch.Tensor):
        raise NotLowered(f"'{node.name}' is {type(val).__name__}, not a tensor")
    if val.dtype not in FLOATS:
        raise NotLowered(f"'{node.name}' is {val.dtype}; the engine computes in fp16 only")
    shape = list(val.shape)
    if any(not isinstance(n, int) for n in shape):
        raise NotLowered(f"'{node.name}' has a symbolic shape {shape}; compile with dynamic=False")
    if not 1 <= len(shape) <= chip.max_rank:
        raise NotLowered(f"'{node.name}' {shape} has rank {len(shape)}; {chip.name} takes 1 to {chip.max_rank}")
    if not all(1 <= n <= chip.max_axis for n in shape):
        raise NotLowered(f"'{node.name}' {shape} has an axis outside 1 to {chip.max_axis}, the limit of {chip.name}")


def _lower(node: Node, low: Lowering, values: Mapping[Node, Any], chip: Chip) -> Any:
    if getattr(node.target, "__name__", "") == "getitem":
        source, index = node.args
        return values[source][index]  # type: ignore[index]
    function = TABLE.get(node.target)
    if function is None:
        raise NotLowered(f"'{node.target}' has no lowering")
    for val in _tensors(node.meta.get("val")):
        _check_tensor(node, val, chip)
    args = torch.fx.map_arg(node.args, lambda n: values[n])
    kwargs = torch.fx.map_arg(node.kwargs, lambda n: values[n])
    try:
        result = function(low, node, *args, **kwargs)
    except MilError as error:
        raise NotLowered(f"'{node.target}': {error}") from error
    _check_rank(node, low, chip)
    return result


def _check_rank(node: Node, low: Lowering, chip: Chip) -> None:
    last = low.builder.ops[-1] if low.builder.ops else None
    if last and last.kind in ("matmul", "transpose") and last.output.type.rank > chip.max_matmul_rank:
        limit = f"{last.kind} takes at most rank {chip.max_matmul_rank} on {chip.name}"
        raise NotLowered(f"'{node.target}' {list(last.output.shape)}: {limit}")


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
    """The values that results have, with the positions that share each."""
    computed: dict[Value, list[int]] = {}
    for position, node in results.items():
        if node.op == "placeholder":
            continue
        value = values[node]
        producer = low.builder.producer(value)
        if producer is None or producer.kind == "const":
            raise NotLowered(f"result '{node.name}' is an input or a constant of the region unchanged")
        computed.setdefault(value, []).append(position)
    return computed


def depends_on(graph: Graph, sources: set[str]) -> set[str]:
    """Names of the nodes that depend on the named placeholders."""
    reached = set(sources)
    for node in graph.nodes:
        if any(n.name in reached for n in node.all_input_nodes):
            reached.add(node.name)
    return reached


def _input_ports(graph: Graph, scaled: Scaled, kinds: Mapping[str, str]) -> tuple[InputPort, ...]:
    used = {v.name: v for v in scaled.function.inputs}
    return tuple(
        InputPort(n.name, i, used[n.name].shape, kinds.get(n.name, "activation"), scaled.weight_operands.get(n.name))
        for i, n in enumerate(_placeholders(graph))
        if n.name in used
    )


def _flops(function: Function) -> int:
    total = 0
    for op in function.ops:
        if op.kind == "const":
            continue
        definition = lookup(op.kind)
        operands: dict[str, Any] = {}
        for param in definition.params:
            given = op.inputs[param.name]
            if isinstance(given, tuple):
                operands[param.name] = tuple(v.type for v in given)
            else:
                operands[param.name] = given.const if param.kind == "const" else given.type
        total += definition.flops(op.output.type, **operands)
    return total
