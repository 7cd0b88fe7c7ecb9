"""What others measured or published, to stand beside a projected step; each with its label and source."""

from __future__ import annotations

from dataclasses import dataclass

from anew.estimate.step import Estimate

#: Peak of one engine kernel and the power given with it, TFLOPS and W: maderix/ANE, README and its second article (M4).
CHAIN, CHAIN_WATTS = 18.6, 2.8
#: TFLOPS a watt that the article behind the headline takes for an A100.
PRESS_A100 = 0.08


@dataclass(frozen=True)
class System:
    """A training system as published: milliseconds a step of one row of ``seq_len`` tokens."""

    name: str
    chip: str
    model: str
    seq_len: int
    ms: float
    source: str
    label: str = "measured by its authors"

    @property
    def tokens_per_second(self) -> float:
        """Tokens learned from a second; 1000 / ms times the tokens of a step."""
        return 1e3 * self.seq_len / self.ms


@dataclass(frozen=True)
class Board:
    """An accelerator card: dense fp16 TFLOPS and watts as its maker states them."""

    name: str
    tflops: float
    watts: float
    source: str

    @property
    def tflops_per_watt(self) -> float:
        """At its peak."""
        return self.tflops / self.watts


#: What a time leaves out, where its source tells, stands in the source.
SYSTEMS = (
    System(
        "maderix/ANE, static kernels", "M4", "Stories110M", 256, 106.7, "training/README; without Adam and recompile"
    ),
    System("maderix/ANE, dynamic kernels", "M4", "Stories110M", 256, 110, "commit cb474e1; without clipping and AdamW"),
    System("maderix/ANE, static kernels", "M4 Max", "Stories110M", 256, 64, "issue 3; without Adam and recompile"),
    System("maderix/ANE", "M5 Max", "Stories110M", 256, 73.5, "pull request 50"),
    System("Orion v2", "M4 Max", "Stories110M", 256, 212, "RESULTS.md: 849 ms for 4 rows, reload of 494 ms left out"),
    System("parameter-golf", "M4 Pro", "GQA, 21.8 M", 256, 32.8, "openai/parameter-golf pull request 801"),
    System("rustane", "M4 Max", "GPT, 48.8 M", 512, 100, "rustane; 130 ms in another place"),
    System("maderix/ANE, dynamic kernels", "M4", "Qwen3-0.6B's shape", 256, 412, "README"),
    System("rustane", "M4 Max", "579 M", 512, 865, "rustane"),
)
BOARDS = (
    Board("A100 SXM", 312, 400, "NVIDIA A100 data sheet: 312 TFLOPS fp16 dense, 400 W"),
    Board("H100 SXM", 989, 700, "NVIDIA H100 data sheet: 989 TFLOPS fp16 dense, 700 W"),
)


def headline(found: Estimate) -> list[str]:
    """Where "80 times an A100" comes from, and what the same arithmetic gives on equal terms."""
    chain, board = CHAIN / CHAIN_WATTS, BOARDS[0]
    part = found.tflops / found.machine.engine_peak_tflops
    return [
        f'"80 times as efficient as an A100" divides {CHAIN:g} TFLOPS / {CHAIN_WATTS:g} W = {chain:.1f} TFLOPS/W, one '
        f"chain of convolutions and the engine's rail alone (M4), by {PRESS_A100:g} TFLOPS/W taken for the A100.",
        f"Its data sheet gives {board.tflops:g} / {board.watts:g} W = {board.tflops_per_watt:.2f} TFLOPS/W, of the "
        f"whole board: {chain / board.tflops_per_watt:.1f} times, peak against peak, one rail against a board.",
        f"This projected step reaches {found.tflops_per_watt:.2f} TFLOPS/W over both rails, "
        f"{found.tflops_per_watt / board.tflops_per_watt:.2f} times what the A100 has at its peak. An A100 at "
        f"the same part of its peak as this step, {part:.0%}, has {part * board.tflops_per_watt:.2f}: "
        f"{found.tflops_per_watt / (part * board.tflops_per_watt):.1f} times.",
    ]


def as_dict(found: Estimate) -> dict[str, object]:
    """The comparison as plain data."""
    return {
        "systems": [vars(s) | {"tokens_per_second": s.tokens_per_second} for s in SYSTEMS],
        "boards": [vars(b) | {"label": "published", "tflops_per_watt": b.tflops_per_watt} for b in BOARDS],
        "headline": headline(found),
    }
