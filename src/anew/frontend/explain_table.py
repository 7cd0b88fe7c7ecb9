"""An explanation as text: a heading, a table of programs, a table of what stays on the host."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from anew.frontend.explain import Explanation

#: Rows of the host table that are shown; the rest is counted.
SHOWN = 16
WIDTH = 140

_LOSS = {True: "on the engine", False: "on the host", None: "on the host"}


def table(found: Explanation) -> str:
    """Lay out an explanation."""
    console = Console(file=io.StringIO(), width=WIDTH, highlight=False)
    for line in _heading(found):
        console.print(line, markup=False)
    console.print(_programs(found))
    if found.host:
        console.print(_host(found))
    left = found.host[SHOWN:]
    if left:
        console.print(f"and {len(left)} rows more, {sum(use.calls for use in left)} operations, in .host", markup=False)
    for gain in found.gains:
        console.print(str(gain), markup=False, soft_wrap=True)
    console.print("Counted on the null device, for a training step; nothing here was measured.", markup=False)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def _heading(found: Explanation) -> list[str]:
    loss = [f"Head and loss {_LOSS[found.loss.used]}: {found.loss.reason}"] if found.loss else []
    return [
        f"One training step on {found.chip}: {found.coverage:.1%} of the matmul and convolution flops and "
        f"{found.coverage_by_count:.1%} of the operations run on the engine",
        f"{found.regions} regions, {len(found.programs)} programs, {found.dispatches} dispatches, "
        f"{_bytes(found.bytes_moved)} moved, {_count(found.engine_flops)}FLOP on the engine, "
        f"{_count(found.host_flops)}FLOP on the host",
        *loss,
        *map(str, found.baked),
    ]


def _programs(found: Explanation) -> Table:
    out = Table(title="On the engine", title_justify="left", box=None, pad_edge=False)
    out.add_column("program")
    constants = ("constants",) if found.baked else ()
    for name in ("runs", "MIL operations", "FLOP a run", "in", "weights", "out", *constants):
        out.add_column(name, justify="right")
    for p in found.programs:
        figures = [_count(p.flops), _bytes(p.bytes_in), _bytes(p.weight_bytes), _bytes(p.bytes_out)]
        figures += [_bytes(p.constant_bytes) for _ in constants]
        out.add_row(p.name, str(p.dispatches), str(sum(p.operations.values())), *figures)
    return out


def _host(found: Explanation) -> Table:
    out = Table(title="\nOn the host", title_justify="left", box=None, pad_edge=False)
    out.add_column("where")
    out.add_column("operation")
    out.add_column("shape")
    out.add_column("calls", justify="right")
    out.add_column("FLOP", justify="right")
    out.add_column("kind")
    out.add_column("why", overflow="fold")
    out.add_column("source", overflow="fold")
    for use in found.host[:SHOWN]:
        shape = "x".join(map(str, use.shape))
        out.add_row(use.where, use.operation, shape, str(use.calls), _count(use.flops), use.kind, use.rule, use.source)
    return out


def _count(n: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if abs(n) < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} P"


def _bytes(n: float) -> str:
    return _count(n) + "B"
