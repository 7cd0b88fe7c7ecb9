"""Counts the work of a training step from a small model: with one layer and with two, and a small vocabulary.

Layers are alike, so what the second one adds is what each further layer adds. Embedding and head are counted from the
shapes of the true vocabulary. So no more than two layers' weights are ever made.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from anew.chips import Chip, load_chip
from anew.compiler.gains import Gain
from anew.device.base import LoadedProgram
from anew.errors import UserError
from anew.estimate.counting import CountingDevice, CountingProgram
from anew.frontend.layers import repeated_layers
from anew.frontend.loss.causal_lm import verdict_of
from anew.frontend.loss.cost import gain_of_saving, tiling_for
from anew.frontend.loss.programs import Ports, Shape, backward, compile_function, forward
from anew.frontend.loss.region import shape_of
from anew.frontend.loss.tiling import Tiling
from anew.frontend.model import compile_in
from anew.frontend.options import Options
from anew.frontend.placement import PlacementWarning
from anew.frontend.recorder import HostRecorder
from anew.frontend.region import GraphCall
from anew.frontend.scales import INTERVAL
from anew.frontend.segment import Segment
from anew.frontend.session import Session
from anew.frontend.staleness import mark
from anew.frontend.typical import TypicalScales
from anew.frontend.weight_store import WeightStore
from anew.optim.adam import EngineAdamW
from anew.optim.shares import holds_head, writes_head
from anew.plan import Plan
from anew.projection import Work
from anew.projection.work import FP16_BYTES, from_memory

if TYPE_CHECKING:
    from anew.finetune.options import FinetuneConfig

#: Vocabulary of the small models.
VOCABULARY = 64
#: What stands for a weight's numbers: the largest of a matrix at work. No amount depends on others.
WEIGHT = 0.1
#: Bytes an element of a host operation's result stands for: two fp32 operands read, one result written.
TOUCHED = 12
#: The forward and the backward program of a tile of the loss, those that measure and the lean ones.
LOSS_PROGRAMS = 4
#: In programs that compute logits, the product that gives them.
LOGITS = frozenset({0})


@dataclass(frozen=True)
class Setting:
    """What is trained how.

    Attributes:
        config: of transformers. seq_len: tokens of a row. batch_size: rows of a step.
        lora: rank of adapters on all linear layers; 0: all weights train. base_bits: of frozen weights as constants.
        tuning: of ``anew finetune``, where what trains is more than a rank says; then ``lora`` is left out.
    """

    config: Any
    seq_len: int
    batch_size: int
    lora: int = 0
    base_bits: int = 0
    tuning: FinetuneConfig | None = None

    @property
    def tunes(self) -> bool:
        """Whether embedding and head are frozen, with all or part of the layers' weights."""
        return bool(self.lora) or self.tuning is not None

    @property
    def trained_layers(self) -> int:
        """Layers that train, counted from the last."""
        layers: int = self.config.num_hidden_layers
        return layers if self.tuning is None or self.tuning.num_layers == -1 else self.tuning.num_layers

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.seq_len * self.batch_size


@dataclass(frozen=True)
class Counted:
    """Amounts of one step, which add.

    Attributes:
        work: of the engine and of the host's copies. forward, backward: the parts of the layers' programs in it.
        loss: the part of the loss's forward programs. tiles, chunks: of the vocabulary and of the tokens, which the
            loss is cut into; no tiles where the head does not train.
        parameters, trained: of the model, and those with a gradient.
        buffers: bytes leased for programs.
        touched: bytes that the host's operations outside the programs read and write; vocabulary, optimizer left out.
        programs: loaded. convolutions: 1 if a program multiplies by a constant kernel, else 0.
        held: parameters whose gradients stay in fp16 where the engine wrote them, for an optimizer that reads them
            there and writes the fp16 weight as well. terms: of the head's, if that is among them: one for each chunk.
    """

    work: Work
    forward: Work
    backward: Work
    parameters: float
    trained: float
    buffers: float
    touched: float
    programs: float
    convolutions: float
    held: float = 0.0
    terms: float = 0.0
    loss: Work = field(default_factory=Work)
    tiles: float = 0.0
    chunks: float = 0.0

    def __add__(self, other: Counted) -> Counted:
        """Return the amounts of both."""
        return Counted(*(a + b for a, b in zip(self._amounts(), other._amounts(), strict=True)))

    def __mul__(self, times: float) -> Counted:
        """Return the amounts of so many."""
        return Counted(*(a * times for a in self._amounts()))

    def _amounts(self) -> list[Any]:
        return list(vars(self).values())


Amount = TypeVar("Amount", Counted, Work)


def count_step(setting: Setting, chip: str) -> Counted:
    """Return the amounts of one training step.

    Raises UserError for a model without repeated layers, or one whose head and loss do not become a loss region.
    """
    layers = getattr(setting.config, "num_hidden_layers", None)
    if not isinstance(layers, int) or not isinstance(getattr(setting.config, "vocab_size", None), int):
        raise UserError("the configuration names no num_hidden_layers or vocab_size; give that of the language model")
    trained, small = setting.trained_layers, _Small(setting, chip)
    with small.first_layer_alone():
        one = small.count()
    two = small.count()
    total = one + (two + one * -1.0) * (trained - 1) + _head(setting, chip)
    if trained < layers:  # below them no gradient is asked for
        two = _Small(setting, chip, trained=1).count()
        total += (two + one * -1.0) * (layers - trained)
    return replace(total, programs=two.programs + LOSS_PROGRAMS)


def gains_of(setting: Setting, chip: str) -> list[tuple[Gain, int]]:
    """What choices by a chip's prices take off a step's programs, and how many times a step runs each."""
    small = _Small(setting, chip)
    small.count()
    layers = [(gain, setting.trained_layers) for gain in small.session.gains if " loss" not in gain.program]
    tiling, _, head = _loss(setting, load_chip(chip))
    return [*layers, *([(head, tiling.runs)] if head else [])]


def _loss(setting: Setting, chip: Chip) -> tuple[Tiling, Shape, Gain | None]:
    """How the loss is cut, a tile's shape, and what a run spares if exponentials are saved; None if they are not."""
    features = setting.config.hidden_size
    tiling = tiling_for(setting.tokens, setting.config.vocab_size, features, chip)
    shape = shape_of(tiling, features, bias=False)
    return tiling, shape, gain_of_saving("loss", shape, tiling, chip)


class _Small:
    """A model of two layers with a small vocabulary, whose graphs are captured once to count one layer and both."""

    def __init__(self, setting: Setting, chip: str, trained: int = -1) -> None:
        self.setting = setting
        self.device = CountingDevice(load_chip(chip))
        self.session = Session(Options(device="null", chip=chip, base_bits=setting.base_bits), self.device)
        self.session.scales = self.scales = TypicalScales()
        self.ids = torch.zeros(setting.batch_size, setting.seq_len, dtype=torch.int64)
        self.model = _build(setting, trained)
        compile_in(self.model, self.session)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = EngineAdamW(self.model, trainable, overlap=False)  # as `anew train` has it

    @contextmanager
    def first_layer_alone(self) -> Iterator[None]:
        """Take the second layer away meanwhile."""
        second = repeated_layers(self.model)[1]
        layers: Any = next(module for module in self.model.modules() if second in module.children())
        del layers[1]
        yield
        layers.append(second)

    def count(self) -> Counted:
        """The amounts of a step, of which one in so many measures; those of head, embedding and their loss left out."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PlacementWarning)
            self.scales.measures = True
            self._clear()
            self._step()
            lean = self._count(measures=False)
            return _mean(self._count(measures=True), lean)

    def _clear(self) -> None:
        self.optimizer.zero_grad()
        _written(self.model, self.session)

    def _count(self, *, measures: bool) -> Counted:
        """The amounts of one more step."""
        model, device, session = self.model, self.device, self.session
        recorder = HostRecorder(_Small._step.__code__, {GraphCall.__call__.__code__})
        self._clear()
        self.scales.measures = measures
        device.reset(lasting(model, session))
        with recorder:
            self._step()
        verdict = verdict_of(model)
        if verdict is None or not verdict.used:
            reason = verdict.reason if verdict else "it has no loss of its own"
            raise UserError(f"only models whose head and loss run on the engine are estimated; of this one {reason}")
        held = {id(p): piece.buffer for p in model.parameters() for piece in session.held.take(p)}
        for buffer in held.values():
            device.keep(buffer)
        loaded = [*session.plans, *session.lean_plans]
        plans = [*loaded, *(bank.baked_plan() for bank in session.banks)]
        loss = [plan for plan in plans if " loss " in plan.name]
        backward = [plan for plan in plans if "backward" in plan.name]
        forward = [plan for plan in plans if "backward" not in plan.name]
        plain = _inside(model)
        programs = len({plan.text for plan in loaded} - {plan.text for plan in loss})
        return Counted(
            device.total(plans, left_out=loss),
            device.total(plans, left_out=[*loss, *backward]),
            device.total(plans, left_out=[*loss, *forward]),
            sum(p.numel() for p in plain),
            sum(p.numel() for p in plain if p.requires_grad),
            device.buffers.allocated_bytes,
            _touched(recorder),
            programs + _baked_programs(session, self.setting.config.num_hidden_layers),
            float(device.convolutions),
            sum(p.numel() for p in plain if id(p) in held),
        )

    def _step(self) -> None:
        self.model(input_ids=self.ids, labels=self.ids).loss.backward()


def _inside(model: Any) -> list[nn.Parameter]:
    """The parameters besides embedding and head."""
    tables = {id(module.weight) for module in (model.get_output_embeddings(), model.get_input_embeddings())}
    return [p for p in model.parameters() if id(p) not in tables]


def _touched(recorder: HostRecorder) -> int:
    """Bytes that the host's operations read and write, those of the vocabulary's size left out."""
    calls = recorder.calls.items()
    return sum(n * TOUCHED * math.prod(call.shape) for call, n in calls if call.shape[:1] != (VOCABULARY,))


def lasting(model: nn.Module, session: Session) -> list[torch.Tensor]:
    """The buffers of weights that the host does not convert in each step: frozen ones, and an optimizer's."""
    frozen = [x for p in model.parameters() if not p.requires_grad for x in _uploaded(p, session)]
    held = [x for p in model.parameters() if p.requires_grad and session.held.holds(p) for x in _uploaded(p, session)]
    written = [entry[0].buffer for x in held if (entry := session.weights.rewritable(x)) is not None]
    return [*written, *(buffer for x in frozen for buffer in session.weights.buffers(x))]


def _uploaded(p: nn.Parameter, session: Session) -> list[torch.Tensor]:
    """A parameter as layers get it, and its tiles as the loss does."""
    tiles = session.loss.views.find(p) if session.loss else None
    return [p, *(view for views in (tiles or {}).values() for view in views)]


def _written(model: nn.Module, session: Session) -> None:
    """Let the weights' buffers be as the optimizer's pass leaves them, which takes longer to compile than one step."""
    for p in filter(session.held.holds, model.parameters()):
        if (entry := session.weights.rewritable(p)) is not None:
            entry[0].mark = mark(p)


def _baked_programs(session: Session, layers: int) -> int:
    """Programs that hold frozen weights as constants, in a model of so many layers; 0 where there are none.

    Two banks, forward and backward, are of one kind of layer. Kinds besides the last are those of first layers.
    """
    chip, banks = session.device.chip, [bank for bank in session.banks if bank.use().layers]
    kinds = math.ceil(len(banks) / 2)
    sizes = [min(chip.procedures, max(chip.weight_bytes // max(bank.nbytes, 1), 1)) for bank in banks]
    return sum(math.ceil((layers - kinds + 1) / size) for size in sizes[:2]) + len(sizes[2:])


def _build(setting: Setting, trained: int) -> nn.Module:
    """A model of two layers, the last ``trained`` of which train (-1: both); every weight is the same number."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = copy.deepcopy(setting.config)
    config.num_hidden_layers, config.vocab_size, config.use_cache = 2, VOCABULARY, False
    config.bos_token_id = config.eos_token_id = 0
    config.pad_token_id = None
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    if setting.seq_len > (most := getattr(config, "max_position_embeddings", setting.seq_len)):
        raise UserError(f"--seq-len {setting.seq_len} is more than the {most} positions of the model")
    try:
        with no_init_weights():
            model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    except Exception as error:  # transformers validates with many types of exception
        raise UserError(f"transformers cannot build this model: {str(error).strip().splitlines()[0]}") from error
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(WEIGHT)
    if not setting.tunes:
        return model
    from anew.finetune.adapt import prepare
    from anew.finetune.options import FinetuneConfig

    tuning = setting.tuning or FinetuneConfig(lora_parameters={"rank": setting.lora})
    return prepare(model, replace(tuning, num_layers=trained))


def _head(setting: Setting, chip: str) -> Counted:
    """The amounts of embedding, head and loss, from their shapes."""
    config = setting.config
    features, vocabulary = config.hidden_size, config.vocab_size
    device = CountingDevice(load_chip(chip))
    session = Session(Options(device="null", chip=chip), device)
    tiling, shape, gain = _loss(setting, session.device.chip)
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
    return _mean(_run(segment.plan, segment.program), _run(lean, segment.device.compile(lean.text, lean.weights)))


def _mean(measured: Amount, lean: Amount) -> Amount:
    """The mean of the calls of an interval, of which one measures."""
    return lean * (1.0 - 1.0 / INTERVAL) + measured * (1.0 / INTERVAL)


def _run(plan: Plan, program: LoadedProgram) -> Work:
    """One run for one tile, if all that it reads is copied."""
    assert isinstance(program, CountingProgram)
    inputs = sum(p.type.numel for p in program.inputs)
    outputs = sum(p.type.numel for p in program.outputs)
    saved = sum(math.prod(port.shape) for port in plan.outputs if port.saved)
    streams = from_memory(FP16_BYTES * float(inputs + outputs))
    return program.work + streams + Work(dispatches=1, read=inputs, write=outputs - saved)
