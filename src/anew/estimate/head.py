"""Counts the work of embedding, head and loss in a training step, from the shapes of the true vocabulary."""

from __future__ import annotations

import math

from anew.chips import Chip, load_chip
from anew.compiler.gains import Gain
from anew.device.base import LoadedProgram
from anew.estimate.counted import Counted, Setting, mean_call
from anew.estimate.counting import CountingDevice, CountingProgram
from anew.frontend.loss.cost import gain_of_saving, tiling_for
from anew.frontend.loss.programs import Ports, Shape, backward, compile_function, forward
from anew.frontend.loss.region import shape_of
from anew.frontend.loss.tiling import Tiling
from anew.frontend.options import Options
from anew.frontend.segment import Segment
from anew.frontend.session import Session
from anew.frontend.weight_store import WeightStore
from anew.optim.shares import holds_head, writes_head
from anew.plan import Plan
from anew.projection import Work
from anew.projection.work import FP16_BYTES, from_memory

#: The forward and the backward program of a tile of the loss, those that measure and the lean ones.
LOSS_PROGRAMS = 4
#: In programs that compute logits, the product that gives them.
LOGITS = frozenset({0})


def loss_of(setting: Setting, chip: Chip) -> tuple[Tiling, Shape, Gain | None]:
    """How the loss is cut, a tile's shape, and what a run spares if exponentials are saved; None if they are not."""
    features = setting.config.hidden_size
    tiling = tiling_for(setting.tokens, setting.config.vocab_size, features, chip)
    shape = shape_of(tiling, features, bias=False)
    return tiling, shape, gain_of_saving("loss", shape, tiling, chip)


def count_head(setting: Setting, chip: str) -> Counted:
    """The amounts of embedding, head and loss, from their shapes."""
    config = setting.config
    features, vocabulary = config.hidden_size, config.vocab_size
    device = CountingDevice(load_chip(chip))
    session = Session(Options(device="null", chip=chip), device)
    tiling, shape, gain = loss_of(setting, session.device.chip)
    kept = gain is not None
    trained = not setting.tunes
    ports = shape.backward_ports(features if trained else 0, kept=kept)
    store, saved = WeightStore(device), {2: True} if kept else {}
    first = compile_function(session, store, "loss forward", forward(keep=kept), shape.ports(), saved)
    function = backward(hidden=True, weight=trained, kept=kept)
    second = compile_function(session, store, "loss backward", function, ports)
    runs, chunks = tiling.runs, tiling.runs // len(tiling.tiles)
    weights = float(runs * shape.columns * features)
    there = not trained or writes_head((vocabulary, features))
    held = trained and holds_head((vocabulary, features), chunks)
    ahead = _tile(first.run, LOGITS) * runs  # type: ignore[arg-type]
    ahead += Work(read=-(_hidden_again(tiling, shape.ports()) + (weights if there else 0.0)))
    work = _tile(second.run, frozenset() if kept else LOGITS) * runs  # type: ignore[arg-type]
    work += Work(read=-_kept(tiling, ports), write=-(weights if held else 0.0))
    tables = vocabulary * features * (1 if config.tie_word_embeddings else 2)
    logits = shape.rows * shape.columns
    buffers = FP16_BYTES * (vocabulary * features + 2 * logits + (runs * logits if kept else 0))
    return Counted(
        ahead + work,
        Work(),
        Work(),
        tables,
        tables if trained else 0,
        buffers,
        touched=0,
        programs=0,
        convolutions=0,
        held=held * vocabulary * features,
        terms=held * chunks,
        loss=ahead,
        tiles=len(tiling.tiles) if trained and there else 0,
        chunks=chunks,
    )


def _hidden_again(tiling: Tiling, forward: Ports) -> int:
    """Elements of hidden states that the forward pass does not copy for each tile: one of a chunk's does."""
    return math.prod(forward["hidden"]) * (tiling.runs - tiling.runs // len(tiling.tiles))


def _kept(tiling: Tiling, backward: Ports) -> int:
    """Elements that the backward pass does not copy for each tile: those that others of the chunk read, or the forward
    pass before.

    Weights are copied for the forward pass alone, and exponentials that are saved never.
    """
    runs, chunks = tiling.runs, tiling.runs // len(tiling.tiles)

    def elements(*names: str) -> int:
        return sum(math.prod(backward[name]) for name in names if name in backward)

    again = elements("hidden") * (runs - (tiling.padded != tiling.tokens))  # padded rows are made anew for each pass
    others = elements("largest", "cotangent") * (runs - chunks)
    return again + others + elements("weight", "mass") * runs


def _tile(segment: Segment, plain: frozenset[int]) -> Work:
    """The mean run for a tile: one in so many measures, between them the ``plain`` products have no scales."""
    lean = segment.make_lean(plain)
    return mean_call(_run(segment.plan, segment.program), _run(lean, segment.device.compile(lean.text, lean.weights)))


def _run(plan: Plan, program: LoadedProgram) -> Work:
    """One run for one tile, if all that it reads is copied."""
    assert isinstance(program, CountingProgram)
    inputs = sum(p.type.numel for p in program.inputs)
    outputs = sum(p.type.numel for p in program.outputs)
    saved = sum(math.prod(port.shape) for port in plan.outputs if port.saved)
    streams = from_memory(FP16_BYTES * float(inputs + outputs))
    return program.work + streams + Work(dispatches=1, read=inputs, write=outputs - saved)
