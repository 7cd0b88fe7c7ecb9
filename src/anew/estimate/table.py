"""A projected step as tables of the terminal."""

from __future__ import annotations

from collections import defaultdict

from rich.console import Console
from rich.table import Column, Table

from anew.estimate.compare import BOARDS, SYSTEMS, headline
from anew.estimate.step import FORMULA, Estimate


def show(found: Estimate, name: str, console: Console) -> None:
    """Print everything about a step."""
    setting = found.setting
    tokens = f"{setting.batch_size} x {setting.seq_len} tokens"
    what = f"LoRA of rank {setting.lora}" if setting.lora else "all weights"
    base = f", base of {setting.base_bits} bits in the programs" if setting.base_bits else ""
    table = Table("", "projected", title=f"{name} on {found.chip}, {tokens}, {what}{base}", title_justify="left")
    for label, value in _rows(found):
        table.add_row(label, value)
    console.print(table)
    console.print(f"TFLOPS: {FORMULA}, over the whole step.")
    if (scaled := found.scaled) is not None:
        console.print(
            f"scaled: nobody measured this chip's programs; its rates are those of {scaled.like}, "
            f"times of the engine x {scaled.engine:g} ({scaled.engine_source}), of streaming x {scaled.stream:g} "
            f"({scaled.stream_source}), of the host x {scaled.copies:g} ({scaled.copies_source})"
        )
    console.print(
        "The interval holds four of five measured programs; copies and host work enter it as they are, and whatever is "
        "extrapolated may be off by more:"
    )
    for what in found.extrapolated:
        console.print(f"  extrapolated: {what}")


#: What is spent on what, in a user's words; two parts of one name are added.
WORDS = {
    "read": "copies to the engine",
    "write": "copies from the engine",
    "matmul": "products",
    "spilled": "products whose operand does not stay on the engine",
    "convolution": "convolutions",
    "weight_bytes": "weights, activations and gradients streamed",
    "fetched": "weights, activations and gradients streamed",
    "elementwise": "passes over elements",
    "attention": "softmax",
}


def _rows(found: Estimate) -> list[tuple[str, str]]:
    machine, joules = found.machine, found.joules
    total, bound = sum(joules.values()), sum(found.bound.values())
    holds = max(found.bound, key=lambda name: found.bound[name])
    return [
        ("time of a step", f"{1e3 * found.seconds:.1f} ms ({1e3 * found.low:.1f} to {1e3 * found.high:.1f})"),
        *((f"  {name}", f"{1e3 * s:.1f} ms, {s / found.seconds:.0%}") for name, s in found.split.items()),
        *([("  of it beside each other", f"{1e3 * found.overlap:.1f} ms")] if found.overlap else []),
        ("most of it", ", ".join(f"{name} {1e3 * s:.1f}" for name, s in _largest(found))),
        ("tokens/s", f"{found.tokens_per_second:.0f}"),
        ("TFLOPS", f"{found.tflops:.2f}"),
        *((f"  of the {name}", f"{part:.1%}") for name, part in found.utilisation.items()),
        ("power while at it", f"{total / found.seconds:.1f} W; waiting: not known, taken as 0"),
        *((f"  {rail}", f"{j:.3f} J") for rail, j in joules.items()),
        ("energy of a step", f"{total:.3f} J"),
        ("tokens/J", f"{found.tokens_per_joule:.0f}"),
        ("TFLOPS/W", f"{found.tflops_per_watt:.2f}"),
        *((f"memory: {what}", f"{size / 1e9:.2f} GB") for what, size in found.memory.items()),
        ("programs, dispatches", f"{found.counted.programs:.0f}, {found.counted.work.dispatches:.0f}"),
        ("bound", " + ".join(f"{name} {1e3 * s:.1f}" for name, s in found.bound.items()) + f" = {1e3 * bound:.1f} ms"),
        ("  most of it, and the step over it", f"{holds}; {found.seconds / bound:.2f} times"),
        (
            "  with the optimizer beside the forward",
            f"{1e3 * found.bound_beside:.1f} ms; {found.seconds / found.bound_beside:.2f} times",
        ),
        ("compiling, once", f"{found.compile[0]:.1f} to {found.compile[1]:.1f} s"),
        ("host's memory", f"{machine.memory_gb_s:g} GB/s ({machine.memory_source})"),
    ]


def _largest(found: Estimate) -> list[tuple[str, float]]:
    """The five largest parts of a step in a user's words, in seconds."""
    parts: defaultdict[str, float] = defaultdict(float)
    for name, seconds in found.parts.items():
        parts[WORDS.get(name, name.removeprefix("host: "))] += seconds
    return sorted(parts.items(), key=lambda part: -part[1])[:5]


def show_comparison(found: Estimate, console: Console) -> None:
    """Print what others measured and published."""
    table = Table(
        Column("system", overflow="fold"),
        "chip",
        Column("model", overflow="fold"),
        "ms a step",
        "tokens/s",
        Column("label", overflow="fold"),
        Column("source", overflow="fold"),
        title="beside it",
        title_justify="left",
    )
    seconds, tokens = found.seconds, found.setting.seq_len * found.setting.batch_size
    table.add_row(
        "anew", found.chip, "this", f"{1e3 * seconds:.1f}", f"{tokens / seconds:.0f}", "projected", "this command"
    )
    for s in SYSTEMS:
        table.add_row(s.name, s.chip, s.model, f"{s.ms:g}", f"{s.tokens_per_second:.0f}", s.label, s.source)
    console.print(table)
    boards = Table("board", "TFLOPS", "W", "TFLOPS/W", "label", "source")
    for b in BOARDS:
        boards.add_row(b.name, f"{b.tflops:g}", f"{b.watts:g}", f"{b.tflops_per_watt:.2f}", "published", b.source)
    console.print(boards)
    for line in headline(found):
        console.print(line)
