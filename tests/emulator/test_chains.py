"""Chains of elementwise operations in one pass: bit for bit what the operations give one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anew.device.emulator.chains import BLOCK, LONGEST, Formula, merge
from anew.device.emulator.fused import binary
from anew.device.emulator.fusion import Step
from anew.device.emulator.lookup import function_table, look_up

SHAPES = [(2, 3, 5, 7), (2, 1, 5, 1), (1, 1, 5, 7), (5, 1), (7,), (2, 3, 1, 1), (), (1, 3, 5, 7)]
"""Of the results, and such as broadcast to it."""
KINDS = ("add", "sub", "mul", "table")


def any_numbers(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Arbitrary fp16 bit patterns, infinities and subnormals among them, as float32."""
    bits = np.random.default_rng(seed).integers(0, 1 << 16, shape, dtype=np.uint16)
    numbers = torch.from_numpy(np.asarray(bits.view(np.float16), np.float32))
    return numbers.nan_to_num(torch.inf, torch.inf, -torch.inf)


def step(kind: str, operands: tuple[str, ...], result: str, shape: tuple[int, ...]) -> Step:
    """A step as the executor makes it."""
    table = function_table("exp") if kind == "table" else None

    def alone(*x: Tensor) -> tuple[Tensor, ...]:
        return (look_up(x[0], table) if table is not None else binary(kind, *x).expand(shape),)

    return Step(alone, operands, (result,), formula=Formula(kind, shape, table))


def run(steps: list[Step], values: dict[str, Tensor]) -> dict[str, Tensor]:
    values = dict(values)
    for part in steps:
        results: tuple[Any, ...] = part.kernel(*[values[name] for name in part.operands])
        values.update(zip(part.results, results, strict=True))
    return values


def same_bits(found: Tensor, wanted: Tensor) -> None:
    assert torch.equal(found.contiguous().view(torch.int32), wanted.contiguous().view(torch.int32))


@settings(max_examples=60, deadline=None)
@given(
    links=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 7), st.booleans()), min_size=2, max_size=LONGEST),
    kept=st.integers(0, LONGEST - 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_chain_gives_the_same_bits(links: list[tuple[str, int, bool]], kept: int, seed: int) -> None:
    values = {f"x{i}": any_numbers(seed + i, shape) for i, shape in enumerate(SHAPES)}
    steps, last = [], "x0"
    for i, (kind, other, turned) in enumerate(links):
        operands = (last,) if kind == "table" else (f"x{other}", last) if turned else (last, f"x{other}")
        last = f"y{i}"
        steps.append(step(kind, operands, last, SHAPES[0]))
    outputs = [f"y{min(kept, len(links) - 1)}", last]
    merged = merge(steps, outputs)
    assert len(merged) == 1
    found, wanted = run(merged, values), run(steps, values)
    for name in outputs:
        same_bits(found[name], wanted[name])


@pytest.mark.parametrize("shape", [(3, 2 * BLOCK + 5), (40, 1000), (0, 4), (4, 300, 2)])
def test_blocks_threads_and_strides(shape: tuple[int, ...]) -> None:
    values = {
        "x": any_numbers(1, shape[::-1]).permute(*reversed(range(len(shape)))),
        "y": any_numbers(2, shape),
        "z": any_numbers(3, shape[-1:]),
    }
    steps = [
        step("mul", ("x", "z"), "a", shape),
        step("mul", ("y", "y"), "b", shape),
        step("add", ("a", "b"), "c", shape),
    ]
    (chain,) = merge(steps, ["c"])
    assert (sorted(chain.operands), chain.results) == (["x", "y", "z"], ("c",))
    same_bits(run([chain], values)["c"], run(steps, values)["c"])


def test_what_others_read_or_has_another_shape_is_no_part_of_a_chain() -> None:
    shape = (4, 6)
    steps = [
        step("mul", ("x", "x"), "a", shape),
        step("add", ("a", "a"), "b", shape),  # reads one result twice: joined
        step("mul", ("r", "r"), "row", (6,)),
        step("sub", ("b", "row"), "c", shape),
        Step(lambda c: (c.amax(1, keepdim=True),), ("c",), ("top",)),
        step("sub", ("c", "top"), "d", shape),
    ]
    merged = merge(steps, ["d"])
    assert [part.results for part in merged] == [("row",), ("c",), ("top",), ("d",)]
    values = {"x": any_numbers(4, shape), "r": any_numbers(5, (6,))}
    same_bits(run(merged, values)["d"], run(steps, values)["d"])
    assert len(merge(steps, ["b", "d"])) == 4


def test_long_trees_are_cut() -> None:
    shape = (8, 8)
    steps = [step("add", (f"y{i}", "x"), f"y{i + 1}", shape) for i in range(2 * LONGEST + 1)]
    merged = merge(steps, [steps[-1].results[0]])
    assert len(merged) == 3
    values = {"x": any_numbers(6, shape), "y0": any_numbers(7, shape)}
    last = steps[-1].results[0]
    same_bits(run(merged, values)[last], run(steps, values)[last])


def test_operands_are_checked() -> None:
    (chain,) = merge([step("add", ("x", "x"), "a", (2,)), step("add", ("a", "x"), "b", (2,))], ["b"])
    with pytest.raises(ValueError, match="float32"):
        chain.kernel(torch.ones(2).half())
