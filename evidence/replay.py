"""Published training steps as amounts of work of engine and host, projected, and by how much that misses.

The schedules are those of the projects' sources (maderix/ANE: training/train_large.m, training_dynamic/train.m at
commit cb474e1 and later; openai/parameter-golf pull request 801 runs the later one), down to the channels of every
kernel and the passes of the host's loops. No price is fitted to a measured step; where a price comes from a part that a
project timed, projecting that project's step takes the reading of another. What the projects leave out of their time
(optimizer, restaging after it, recompiling) is left out here.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from anew.estimate.host import CONVERSION
from anew.projection import Work, from_memory, read_rates
from evidence import record
from evidence.projection_rows import CSV

FP32, FP16 = 4, 2
#: A miss beyond this is one that issue and docs call too large.
ALLOWED = 0.30
#: Seconds of a dispatch through _ANEInMemoryModel, above those of e5rt in the rows: XPC and IOKit, maderix's second
#: article; a least-squares fit of chains of 32 to 128 convolutions (M4, issue 3) gives 0.087 ms.
DISPATCH = 0.095e-3
#: Bytes a second of memcpy into an IOSurface: 393 KB in 0.006 ms (maderix/ANE pull request 40).
MEMCPY = 393e3 / 0.006e-3
#: Seconds of a conversion between fp32 and fp16, and of one vDSP pass over an element, from timed parts of steps: the
#: static trainer's forward conversions (4d67db1, 4.1 ms) and parameter-golf's (1.8 ms; the schedule below gives the
#: elements); the derivative of SiLU, 13 passes, of commit cb474e1 (10 ms) and of parameter-golf (3.5 ms).
CONVERSIONS = {"static": CONVERSION, "golf": 1.8e-3 / (9 * 15 * 512 * 256)}
PASSES = {"dynamic": 10e-3 / (12 * 13 * 2048 * 256), "golf": 3.5e-3 / (9 * 13 * 1024 * 256)}
#: Passes of the host over an element: derivative of SiLU, RMSNorm forward and backward.
SILU, NORM, NORM_BACKWARD = 13, 4, 13
#: Clusters of performance cores, each with one unit for matrices: M4 1; M4 Pro and M4 Max 2 (Apple, technical specs).
CLUSTERS = {"m4": 1, "m4-pro": 2, "m4-max": 2}


@dataclass(frozen=True)
class Host:
    """Amounts of the host's work in a step.

    Attributes:
        converted: elements between fp32 and fp16. copied: bytes by memcpy. passes: elements times vDSP passes.
        exponentials: elements of softmax, and half-pairs of RoPE, which take a transcendental function each.
        products: floating-point operations of sgemm in line; beside: of those in a queue beside the rest.
    """

    converted: float = 0.0
    copied: float = 0.0
    passes: float = 0.0
    exponentials: float = 0.0
    products: float = 0.0
    beside: float = 0.0

    def __add__(self, other: Host) -> Host:
        """Return the amounts of both."""
        return Host(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def __mul__(self, times: float) -> Host:
        """Return these amounts so many times."""
        return Host(*(times * amount for amount in dataclasses.astuple(self)))


@dataclass(frozen=True)
class Shape:
    """A Llama: channels of the model, of queries, of keys, hidden; heads, layers, vocabulary, tokens of a row."""

    model: int
    queries: int
    keys: int
    hidden: int
    heads: int
    layers: int
    vocabulary: int
    tokens: int = 256

    @property
    def weights(self) -> int:
        """Weights of a layer's products."""
        return self.model * (2 * self.queries + 2 * self.keys + 3 * self.hidden)

    @property
    def scores(self) -> int:
        """Elements of all heads' scores."""
        return self.heads * self.tokens**2

    def linear(self, weights: int) -> Work:
        """Products of every token with so many weights."""
        return Work(matmul=2.0 * self.tokens * weights)

    def constant(self, weights: int) -> Work:
        """The same with weights that are constants of the program."""
        return self.linear(weights) + from_memory(FP16 * weights)

    def attention(self, products: int, softmaxes: int = 0) -> Work:
        """So many products of queries, keys, values or scores, and softmaxes with scale and mask."""
        scores = softmaxes * self.scores
        flops = 2.0 * products * self.tokens**2 * self.queries
        return Work(matmul=flops, attention=scores, elementwise=2 * scores)

    def kernel(self, channels_in: int, channels_out: int, size: int = FP16) -> Work:
        """One dispatch, with channels that the engine reads and writes."""
        return Work(dispatches=1) + from_memory(size * self.tokens * float(channels_in + channels_out))

    def packed(self, channels: int, weights: int, channels_out: int, size: int = FP16) -> Work:
        """One dispatch whose only input holds activations and weights: it cuts them out and turns activations twice.

        An input of fp32 is first cast, all of it, and the result cast back.
        """
        held, results = channels * self.tokens + weights, channels_out * self.tokens
        passes = held + 2 * (channels * self.tokens + results) + (held + results if size == FP32 else 0)
        return self.kernel(channels, channels_out, size) + from_memory(size * weights) + Work(elementwise=passes)


STORIES = Shape(768, 768, 768, 2048, 12, 12, 32000)
#: The dynamic trainer's vocabulary is that of the tokens which occur.
STORIES_COMPACT = Shape(768, 768, 768, 2048, 12, 12, 9205)
QWEN = Shape(1024, 2048, 1024, 3072, 16, 28, 9205)
GOLF = Shape(512, 512, 256, 1024, 8, 9, 1024)


def static(s: Shape) -> tuple[Work, Host]:
    """A layer of kernels with constant weights: 6 dispatches (stories_mil.h, train_large.m)."""
    d, h, t, scored = s.model, s.hidden, s.tokens, s.heads * s.tokens
    engine = (
        s.kernel(d, 6 * d) + s.constant(4 * d * d) + s.attention(2, 1) + Work(elementwise=5 * d * t)
        + s.kernel(d, 2 * d + 3 * h) + s.constant(3 * d * h) + Work(elementwise=3 * h * t + 5 * d * t)
        + s.kernel(d + 2 * h, d + 2 * h) + s.constant(3 * d * h) + Work(elementwise=6 * h * t)
        + s.kernel(4 * d, d + 2 * scored) + s.constant(d * d) + s.attention(3, 1)
        + s.kernel(2 * scored + 2 * d, 2 * d) + s.attention(2) + Work(elementwise=4 * s.scores)
        + s.kernel(3 * d, d) + s.constant(3 * d * d)
    )  # fmt: skip
    host = Host(
        converted=t * (7 * d + 3 * h + 7 * d + 2 * h),
        copied=t * (FP16 * (2 * h + 8 * d + 2 * scored) + FP32 * (12 * d + 3 * h)),
        passes=t * d * (4 + 2 * NORM_BACKWARD),
        beside=2.0 * t * s.weights,
    )
    return engine, host


def restaged(s: Shape) -> tuple[Work, Host]:
    """A layer at commit cb474e1: 9 dispatches; 7 take fp32 and weights, copied in for every layer and direction."""
    d, h, t, scored = s.model, s.hidden, s.tokens, s.heads * s.tokens
    engine = (
        s.packed(d, 4 * d * d, 6 * d, FP32) + s.linear(4 * d * d) + s.attention(2, 1)
        + s.packed(d, 2 * d * h, 3 * h, FP32) + s.linear(2 * d * h) + Work(elementwise=3 * h * t)
        + s.packed(h, d * h, d, FP32) + s.linear(d * h)
        + s.packed(d, d * h, h, FP32) + s.linear(d * h)
        + s.packed(2 * h, 2 * d * h, d, FP32) + s.linear(2 * d * h)
        + s.packed(d, d * d, d, FP32) + s.linear(d * d)
        + s.kernel(4 * d, d + 2 * scored) + s.attention(3, 1)
        + s.kernel(2 * scored + 2 * d, 2 * d) + s.attention(2) + Work(elementwise=4 * s.scores)
        + s.packed(3 * d, 3 * d * d, d, FP32) + s.linear(3 * d * d)
    )  # fmt: skip
    activations = d + 5 * d + d + 4 * h + h + d + (d + h + 2 * h + d + 2 * d + 3 * d + d)
    captured = 12 * d + 3 * h + 6 * d
    host = Host(
        converted=t * 9 * d,
        copied=FP32 * (2.0 * s.weights + t * (activations + captured)) + FP16 * t * 2 * scored,
        passes=t * (SILU * h + d * (4 + 2 * NORM + 2 * NORM_BACKWARD)),
        beside=2.0 * t * s.weights,
    )
    return engine, host


def dynamic(s: Shape) -> tuple[Work, Host]:
    """A layer of the later kernels: 10 dispatches; weights were put beside the activations before the step (io.h)."""
    d, q, k, h, t, scored = s.model, s.queries, s.keys, s.hidden, s.tokens, s.heads * s.tokens
    engine = (
        s.packed(d, d * (q + 2 * k), 2 * q + 2 * k + d) + s.linear(d * (q + 2 * k)) + s.attention(2, 1)
        + Work(elementwise=4 * t * (q + k))
        + s.packed(q, q * d, d) + s.linear(q * d)
        + s.packed(2 * d, 3 * d * h, d + 3 * h) + s.linear(3 * d * h) + Work(elementwise=(3 * h + 2 * d) * t + d * h)
        + s.packed(d, d * h, h) + s.linear(d * h)
        + s.packed(2 * h, 2 * d * h, d) + s.linear(2 * d * h)
        + s.packed(d, d * q, q) + s.linear(d * q)
        + s.kernel(4 * q, q + 2 * scored) + s.attention(3, 1)
        + s.kernel(2 * scored + 2 * q, 2 * q) + s.attention(2) + Work(elementwise=4 * s.scores)
        + s.packed(q, q * d, d) + s.linear(q * d)
        + s.packed(2 * k, 2 * d * k, d) + s.linear(2 * d * k)
    )  # fmt: skip
    forward = d + 2 * q + 2 * k + q + d + 2 * d + d + 3 * h
    backward = d + h + 2 * h + d + d + q + 4 * q + 2 * q + 3 * q + q + d + 2 * k + d
    repeated = 0 if q == k else 2 * q + 2 * (q + k)
    host = Host(
        converted=t * (forward + backward),
        copied=t * (FP16 * 2 * scored + FP32 * (6 * d + 3 * h + 3 * q + 2 * k + repeated)),
        passes=t * (SILU * h + d * (6 + 2 * NORM + 2 * NORM_BACKWARD) + 4 * q),
        exponentials=t * (q + k),
        beside=2.0 * t * s.weights,
    )
    return engine, host


def ends(s: Shape) -> Host:
    """Final norm, classifier, cross-entropy with its two transpositions, and the embedding, on the host."""
    products = 2.0 * s.tokens * s.vocabulary * s.model
    logits = s.tokens * s.vocabulary
    return Host(
        passes=s.tokens * s.model * (4 + NORM + NORM_BACKWARD) + 2 * logits,
        exponentials=logits,
        products=2 * products,
        beside=products,
    )


@dataclass(frozen=True)
class Schedule:
    """A published time: milliseconds of a step of a shape on a chip, and the kernels that took it.

    ``parts`` names the source of timed parts that this step is not priced with.
    """

    key: str
    name: str
    chip: str
    shape: Shape
    kernels: Callable[[Shape], tuple[Work, Host]]
    ms: float
    source: str
    parts: str


SCHEDULES = (
    Schedule("static_m4", "Stories110M, static", "m4", STORIES, static, 106.7, "maderix/ANE training/README", "static"),
    Schedule("static_m4_max", "Stories110M, static", "m4-max", STORIES, static, 64, "maderix/ANE issue 3", "static"),
    Schedule(
        "dynamic_m4",
        "Stories110M, dynamic",
        "m4",
        STORIES_COMPACT,
        restaged,
        110,
        "maderix/ANE commit cb474e1",
        "dynamic",
    ),
    Schedule("qwen_m4", "Qwen3-0.6B's shape, dynamic", "m4", QWEN, dynamic, 412, "maderix/ANE README", "dynamic"),
    Schedule(
        "golf_m4_pro",
        "GQA, 22M parameters, dynamic",
        "m4-pro",
        GOLF,
        dynamic,
        32.8,
        "parameter-golf pull request 801",
        "golf",
    ),
)


def cpu_row(start: str, unit: Callable[[dict[str, str]], float]) -> float:
    """Seconds a unit of an fp32 row of the M4's CPU: the fastest of those whose workload starts so."""
    with CSV.open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(file) if (r["chip"], r["device"]) == ("M4", "CPU")]
    return min(float(r["latency_ms"]) / 1e3 / unit(r) for r in rows if r["workload"].startswith(start))


def host_gemm() -> float:
    """Seconds of one floating-point operation of an fp32 matmul on the M4's CPU."""
    return cpu_row("matmul", lambda row: 1e9 * float(row["gflop"]))


def host_softmax() -> float:
    """Seconds of an element of a softmax on the M4's CPU: largest, difference, exponential, sum, quotient."""
    return cpu_row("softmax shape=[256, 4096]", lambda row: 256 * 4096)


def dearest(readings: dict[str, float], left_out: str) -> float:
    """The dearest reading of a price, without the one that comes from the step to be projected."""
    return max(price for source, price in readings.items() if source != left_out)


def host_seconds(host: Host, schedule: Schedule) -> tuple[dict[str, float], float]:
    """Seconds of the host's work by kind, and of what runs beside the rest."""
    gemm = host_gemm() / CLUSTERS[schedule.chip]
    parts = {
        "conversions": host.converted * dearest(CONVERSIONS, schedule.parts),
        "memcpy": host.copied / MEMCPY,
        "passes": host.passes * dearest(PASSES, schedule.parts),
        "exponentials": host.exponentials * host_softmax(),
        "products": host.products * gemm,
    }
    return parts, host.beside * gemm


def amounts(schedule: Schedule) -> tuple[Work, Host]:
    """The work of a whole step."""
    work, host = schedule.kernels(schedule.shape)
    return work * schedule.shape.layers, host * schedule.shape.layers + ends(schedule.shape)


def project(schedule: Schedule) -> dict[str, Any]:
    """Milliseconds of a schedule by part. Weight gradients run beside the rest; what is longer counts."""
    work, host = amounts(schedule)
    rates = read_rates(schedule.chip)
    engine = rates.parts(work) | {"dispatches": work.dispatches * DISPATCH}
    parts, beside = host_seconds(host, schedule)
    rest = sum(engine.values()) + sum(parts.values())
    seconds = max(rest, beside)
    return {
        "measured_ms": schedule.ms,
        "projected_ms": 1e3 * seconds,
        "miss_percent": 100 * (1e3 * seconds / schedule.ms - 1),
        "engine_ms": 1e3 * (sum(engine.values()) - engine["dispatches"]),
        "wait_ms": 1e3 * engine["dispatches"],
        "host_ms": 1e3 * sum(parts.values()),
        "host_parts_ms": {name: 1e3 * s for name, s in parts.items()},
        "engine_parts_ms": {name: 1e3 * s for name, s in engine.items() if s},
        "weight_gradients_beside_ms": 1e3 * beside,
        "dispatches": work.dispatches,
        "source": schedule.source,
    }


def main() -> None:
    """Replay every schedule, write the record and the table of docs/projection.md."""
    found = {s.key: project(s) for s in SCHEDULES}
    record.write("replay", {"allowed_percent": 100 * ALLOWED, "schedules": found})
    record.write_table("projection.md", "replay", list(_rows(found)))
    beyond = [f"{s.name} on {s.chip}" for s in SCHEDULES if abs(found[s.key]["miss_percent"]) > 100 * ALLOWED]
    print(f"beyond {ALLOWED:.0%}: {', '.join(beyond) or 'none'}")


def _rows(found: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    for s in SCHEDULES:
        figures = found[s.key]

        def quote(key: str, form: str, figures: dict[str, Any] = figures, name: str = s.key) -> str:
            return f'[{figures[key]:{form}}](evidence/replay.json "schedules.{name}.{key}")'

        columns = (("measured_ms", ".1f"), ("projected_ms", ".1f"), ("miss_percent", ".0f"))
        yield [s.name, s.chip, *(quote(key, form) for key, form in columns), s.source]
