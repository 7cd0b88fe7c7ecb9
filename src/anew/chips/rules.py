"""The rules of a chip for one operation: what its rows say about ranks, axes, kernels, and the constructs in dispute.

A rule looks at an operation and at the operations that define its operands; it yields what is broken: the value, a
sentence, and the row or the switch it rests on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from anew.chips.chip import Chip
from anew.mil import Op, Value

Producer = Callable[[Value], Op | None]

REDUCTIONS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_sum_square", "reduce_l2_norm")
CONVOLUTIONS = ("conv", "conv_transpose")


class Breach(NamedTuple):
    """A rule broken: by which value, and the row or the switch that holds the rule."""

    value: Value
    rule: str
    row: str


Rule = Callable[[Op, Chip, Producer], Iterator[Breach]]


def breaches(op: Op, chip: Chip, producer: Producer) -> Iterator[Breach]:
    """Yield every rule that an operation breaks, disputed ones included."""
    yield from _support(op, chip)
    yield from _extents(op, chip)
    if op.kind in _RULES:
        yield from _RULES[op.kind](op, chip, producer)


def unsupported(kind: str, chip: Chip) -> tuple[str, str] | None:
    """The sentence and the row that keep an operation off the engine whatever its operands; None if it reaches it."""
    status = chip.operations.get(kind, "native")
    if status in ("bridge", "walled"):
        how = "cannot be reached from MIL" if status == "bridge" else "does not exist"
        return f"{how} on {chip.name}", kind
    if kind in chip.switches["swept_operations"].operations:
        return "does not compile by one of two accounts", "swept_operations"
    return None


def _support(op: Op, chip: Chip) -> Iterator[Breach]:
    missing = unsupported(op.kind, chip)
    if missing is not None:
        yield Breach(op.outputs[0], *missing)
    if op.kind == "identity":
        yield Breach(op.output, "does not compile by one of two accounts", "identity")
    if op.kind == "cast":
        yield Breach(op.output, "does not compile by one of two accounts", "fp32")


def extents(shape: Sequence[int], chip: Chip, channel_axes: Sequence[int] = ()) -> Iterator[tuple[str, str]]:
    """Yield the sentence and the row for each rule about rank and axes that a tensor's shape breaks.

    ``channel_axes`` are channels of a convolution, which have a limit of their own.
    """
    if len(shape) > chip.max_rank:
        yield f"has rank {len(shape)}; {chip.name} takes at most {chip.max_rank}", "max_rank"
    for axis, n in enumerate(shape):
        row, most = ("max_channels", chip.max_channels) if axis in channel_axes else ("max_axis", chip.max_axis)
        if not 1 <= n <= most:
            yield f"has an axis of {n} elements; {chip.name} takes 1 to {most}", row


def _extents(op: Op, chip: Chip) -> Iterator[Breach]:
    channels = _channel_axes(op)
    for value in dict.fromkeys((*op.tensors(), *op.outputs)):
        for rule, row in extents(value.shape, chip, channels.get(value, ())):
            yield Breach(value, rule, row)


def _channel_axes(op: Op) -> dict[Value, tuple[int, ...]]:
    """The axes of a convolution that the limit of an axis does not hold for."""
    if op.kind not in CONVOLUTIONS:
        return {}
    return {_single(op, "x"): (1,), _single(op, "weight"): (0, 1), op.output: (1,)}


def _at_most(value: Value, what: str, n: int, chip: Chip, row: str) -> Iterator[Breach]:
    """A breach when a number is beyond the limit that a row holds."""
    limit = getattr(chip, row)
    if n > limit:
        yield Breach(value, f"{what} {n}; {chip.name} takes at most {limit}", row)


def _matmul(op: Op, chip: Chip, producer: Producer) -> Iterator[Breach]:
    yield from _at_most(op.output, "has rank", op.output.type.rank, chip, "max_matmul_rank")
    if op.kind == "matmul" and any(_is_repeated(value, producer) for value in op.tensors()):
        yield Breach(op.output, "reads key or value heads that were repeated", "gqa")


def _is_repeated(value: Value, producer: Producer) -> bool:
    """Whether a value was made by repeating another, as attention with fewer key than query heads does."""
    op = producer(value)
    while op is not None and op.kind in ("reshape", "transpose"):
        op = producer(_single(op, "x"))
    if op is None or op.kind != "concat":
        return op is not None and op.kind == "tile"
    values = op.inputs["values"]
    assert isinstance(values, tuple)
    return len(set(values)) < len(values)


def _transpose(op: Op, chip: Chip, producer: Producer) -> Iterator[Breach]:
    yield from _matmul(op, chip, producer)
    perm = _single(op, "perm").const
    moved = math.prod(n for i, n in enumerate(_single(op, "x").shape) if perm[i] % len(perm) != i)
    yield from _at_most(op.output, "moves axes with a product of", moved, chip, "max_transpose")


def _conv(op: Op, chip: Chip, producer: Producer) -> Iterator[Breach]:
    x, weight = _single(op, "x"), _single(op, "weight")
    yield from _at_most(weight, "has a kernel of width", weight.shape[-1], chip, "max_kernel_width")
    if not weight.constant:
        yield from _at_most(x, "has no constant weight and a batch of", x.shape[0], chip, "runtime_kernel_batch")
    if x.shape[1] > chip.max_input_channels:
        known = f"{chip.max_input_channels} are the most known to compile"
        yield Breach(x, f"has {x.shape[1]} input channels; {known}", "wide_input")
    if "bias" in op.inputs:
        yield Breach(op.output, "takes no bias", "conv_bias")


def _pool(op: Op, chip: Chip, producer: Producer) -> Iterator[Breach]:
    yield from _at_most(op.output, "has a window of", max(_single(op, "kernel_sizes").const), chip, "max_pool_window")


def _tile(op: Op, chip: Chip, producer: Producer) -> Iterator[Breach]:
    for factor in _single(op, "reps").const:
        if factor not in (1, *chip.tile_factors):
            known = ", ".join(map(str, chip.tile_factors))
            yield Breach(op.output, f"repeats an axis {factor} times; {chip.name} takes {known}", "tile_factors")


def _concat(op: Op, chip: Chip, producer: Producer) -> Iterator[Breach]:
    values = op.inputs["values"]
    assert isinstance(values, tuple)
    if len(values) != 2:
        yield Breach(op.output, f"joins {len(values)} values, takes exactly 2", "concat_inputs")
    last = values[0].type.rank - 1
    if _single(op, "axis").const % (last + 1) == last and any(_is_last_axis_slice(producer(v)) for v in values):
        yield Breach(op.output, "joins slices of the last axis along it", "last_axis_rope")


def _is_last_axis_slice(op: Op | None) -> bool:
    if op is None or op.kind not in ("slice_by_size", "slice_by_index"):
        return False
    return op.output.shape[-1:] != _single(op, "x").shape[-1:]


def _layer_norm(op: Op, chip: Chip, producer: Producer) -> Iterator[Breach]:
    x = _single(op, "x")
    axes = op.inputs["axes"].const if "axes" in op.inputs else (-1,)  # type: ignore[union-attr]
    yield from _at_most(op.output, "has rows of", math.prod(x.shape[a] for a in axes), chip, "max_layer_norm")


def _sdpa(op: Op, chip: Chip, producer: Producer) -> Iterator[Breach]:
    query, key = _single(op, "query"), _single(op, "key")
    length = max(query.shape[-2], key.shape[-2])
    yield from _at_most(op.output, "has a sequence of", length, chip, "max_sdpa_length")
    if "attn_mask" in op.inputs:
        yield Breach(op.output, "ignores its mask", "sdpa_mask")


def _softmax(op: Op, chip: Chip, producer: Producer) -> Iterator[Breach]:
    n = op.output.shape[_single(op, "axis").const]
    if n & (n - 1):
        yield Breach(op.output, f"runs over {n} elements, takes powers of 2", "softmax_power_of_2")


def _reduce_mean(op: Op, chip: Chip, producer: Producer) -> Iterator[Breach]:
    yield Breach(op.output, "does not compile", "reduce_mean")


def _root(op: Op, chip: Chip, producer: Producer) -> Iterator[Breach]:
    before = producer(_single(op, "x"))
    while before is not None and before.kind in ("add", "mul", "real_div", "maximum"):  # epsilon, 1/n
        before = producer(next(iter(before.tensors())))
    if before is not None and before.kind in REDUCTIONS:
        yield Breach(op.output, f"does not compile after {before.kind}", "rsqrt_after_reduce")


def _after_root(op: Op, chip: Chip, producer: Producer) -> Iterator[Breach]:
    for value in op.tensors():
        before = producer(value)
        if before is None or before.kind != "sqrt":
            continue
        if op.kind == "real_div" or value.shape != op.output.shape:
            yield Breach(op.output, "gives wrong values after sqrt", "sqrt_then_broadcast")


def _single(op: Op, name: str) -> Value:
    operand = op.inputs[name]
    assert isinstance(operand, Value)
    return operand


_RULES: dict[str, Rule] = {
    "matmul": _matmul,
    "transpose": _transpose,
    "conv": _conv,
    "conv_transpose": _conv,
    "avg_pool": _pool,
    "max_pool": _pool,
    "l2_pool": _pool,
    "tile": _tile,
    "concat": _concat,
    "layer_norm": _layer_norm,
    "scaled_dot_product_attention": _sdpa,
    "softmax": _softmax,
    "reduce_mean": _reduce_mean,
    "sqrt": _root,
    "rsqrt": _root,
    "mul": _after_root,
    "real_div": _after_root,
}
