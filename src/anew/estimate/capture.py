"""Counts the work of a training step from two small models: of one layer and of two, with a small vocabulary.

Layers are alike, so what the second one adds is what each further layer adds. Embedding and head are counted from the
shapes of the true vocabulary. So no more than two layers' weights are ever made.
"""

from __future__ import annotations

import copy
import gc
import importlib.util
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from anew.chips import load_chip
from anew.errors import UserError
from anew.estimate.counting import CountingDevice, CountingProgram
from anew.frontend.loss.causal_lm import verdict_of
from anew.frontend.loss.programs import Shape, backward, compile_function, forward
from anew.frontend.loss.region import longest_tile
from anew.frontend.loss.tiling import Tiling
from anew.frontend.model import compile_in
from anew.frontend.options import Options
from anew.frontend.placement import PlacementWarning
from anew.frontend.recorder import HostRecorder
from anew.frontend.region import GraphCall
from anew.frontend.session import Session
from anew.frontend.weight_store import WeightStore
from anew.plan import Plan
from anew.projection import Work
from anew.projection.work import FP16_BYTES, from_memory

if TYPE_CHECKING:
    from anew.finetune.options import FinetuneConfig

#: Vocabulary of the small models.
VOCABULARY = 64
#: Bytes an element of a host operation's result stands for: two fp32 operands read, one result written.
TOUCHED = 12
#: The forward and the backward program of a tile of the loss.
LOSS_PROGRAMS = 2


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
        work: of the engine and of the host's copies. forward: the part of the layers' forward programs in it.
        parameters, trained: of the model, and those with a gradient.
        buffers: bytes leased for programs.
        touched: bytes that the host's operations outside the programs read and write; vocabulary, optimizer left out.
        programs: loaded. convolutions: 1 if a program multiplies by a constant kernel, else 0.
        held: parameters whose gradients stay in fp16 where the engine wrote them, for an optimizer that reads them
            there and writes the fp16 weight as well.
        by_rows: 1 if that optimizer takes an embedding's gradient by rows, else 0.
    """

    work: Work
    forward: Work
    parameters: float
    trained: float
    buffers: float
    touched: float
    programs: float
    convolutions: float
    held: float = 0.0
    by_rows: float = 0.0

    def __add__(self, other: Counted) -> Counted:
        """Return the amounts of both."""
        return Counted(*(a + b for a, b in zip(self._amounts(), other._amounts(), strict=True)))

    def __mul__(self, times: float) -> Counted:
        """Return the amounts of so many."""
        return Counted(*(a * times for a in self._amounts()))

    def _amounts(self) -> list[Any]:
        return list(vars(self).values())


def count_step(setting: Setting, chip: str) -> Counted:
    """Return the amounts of one training step.

    Raises UserError for a model without repeated layers, or one whose head and loss do not become a loss region.
    """
    layers = getattr(setting.config, "num_hidden_layers", None)
    if not isinstance(layers, int) or not isinstance(getattr(setting.config, "vocab_size", None), int):
        raise UserError("the configuration names no num_hidden_layers or vocab_size; give that of the language model")
    trained = setting.trained_layers
    session = _session(setting, chip)
    one = _small(setting, 1, session)
    gc.collect()  # the model that is gone hands back its buffers
    most = _small(setting, 2, _session(setting, chip) if setting.base_bits else session)
    total = one + (most + one * -1.0) * (trained - 1) + _head(setting, chip)
    if trained < layers:  # below them no gradient is asked for
        most = _small(setting, 2, _session(setting, chip), trained=1)
        total += (most + one * -1.0) * (layers - trained)
    return replace(total, programs=most.programs + LOSS_PROGRAMS)


def _session(setting: Setting, chip: str) -> Session:
    device = CountingDevice(load_chip(chip))
    return Session(Options(device="null", chip=chip, base_bits=setting.base_bits), device)


def _small(setting: Setting, layers: int, session: Session, trained: int = -1) -> Counted:
    """The amounts of a model of few layers; head, embedding and their part of the loss left out.

    Models in one session share the programs of their layers; constants in them are of one model, which needs its own.
    """
    model, device = _build(setting, layers, trained), session.device
    assert isinstance(device, CountingDevice)
    compile_in(model, session)
    ids = torch.zeros(setting.batch_size, setting.seq_len, dtype=torch.int64)
    recorder = HostRecorder(_step.__code__, {GraphCall.__call__.__code__})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlacementWarning)
        optimizer = _optimizer(model)
        _step(model, ids)
        if optimizer is not None:
            _written(model, session)
            optimizer.zero_grad()
        model.zero_grad()
        device.reset(() if optimizer is None else lasting(model, session))
        with recorder:
            _step(model, ids)
    verdict = verdict_of(model)
    if verdict is None or not verdict.used:
        reason = verdict.reason if verdict else "it has no loss of its own"
        raise UserError(f"only models whose head and loss run on the engine are estimated; of this one {reason}")
    held = _held(model, session)
    for buffer in held.values():
        device.keep(buffer)
    loss = {plan.text for plan in session.plans if " loss " in plan.name}
    backward = {plan.text for plan in session.plans if "backward" in plan.name}
    head = model.get_output_embeddings().weight  # type: ignore[operator]
    tables = {id(head): head, id(model.get_input_embeddings().weight): model.get_input_embeddings().weight}  # type: ignore[operator]
    plain = [p for p in model.parameters() if id(p) not in tables]
    touched = sum(
        calls * TOUCHED * math.prod(call.shape)
        for call, calls in recorder.calls.items()
        if call.shape[:1] != (VOCABULARY,)
    )
    return Counted(
        device.total(session.plans, left_out=loss),
        device.total(session.plans, left_out=loss | backward),
        sum(p.numel() for p in plain),
        sum(p.numel() for p in plain if p.requires_grad),
        device.buffers.allocated_bytes,
        touched,
        len({plan.text for plan in session.plans} - loss) + _baked_programs(session, setting.config.num_hidden_layers),
        float(device.convolutions),
        sum(p.numel() for p in plain if id(p) in held),
        float(bool(held) and importlib.util.find_spec("anew.optim.embedding") is not None),
    )


def _optimizer(model: nn.Module) -> Any:
    """What `anew train` steps a model with; None where programs are counted that know of no such optimizer."""
    try:
        adam = importlib.import_module("anew.optim.adam")
    except ModuleNotFoundError:
        return None
    return adam.EngineAdamW(model, [p for p in model.parameters() if p.requires_grad], overlap=False)


def lasting(model: nn.Module, session: Session) -> list[torch.Tensor]:
    """The buffers of weights that the host does not convert in each step: frozen ones, and an optimizer's."""
    there = [p for p in model.parameters() if not p.requires_grad or session.held.holds(p)]
    return [entry[0].buffer for p in there if (entry := session.weights.rewritable(p)) is not None]


def _written(model: nn.Module, session: Session) -> None:
    """Let the weights' buffers be as the optimizer's pass leaves them, which takes longer to compile than one step."""
    mark = importlib.import_module("anew.frontend.staleness").mark
    for p in model.parameters():
        entry = session.weights.rewritable(p)
        if entry is not None and session.held.holds(p):
            entry[0].mark = mark(p)


def _held(model: nn.Module, session: Session) -> dict[int, torch.Tensor]:
    """Take what is held, and return the buffers by the identity of their parameters."""
    gradients = getattr(session, "held", None)
    if gradients is None:
        return {}
    return {id(p): piece.buffer for p in model.parameters() for piece in gradients.take(p)}


def _baked_programs(session: Session, layers: int) -> int:
    """Programs that hold frozen weights as constants, in a model of so many layers; 0 where there are none.

    Two banks, forward and backward, are of one kind of layer. Kinds besides the last are those of first layers.
    """
    chip, banks = session.device.chip, [bank for bank in session.banks if bank.use().layers]
    kinds = math.ceil(len(banks) / 2)
    sizes = [min(chip.procedures, max(chip.weight_bytes // max(bank.baked.nbytes, 1), 1)) for bank in banks]
    return sum(math.ceil((layers - kinds + 1) / size) for size in sizes[:2]) + len(sizes[2:])


def _build(setting: Setting, layers: int, trained: int) -> nn.Module:
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(setting.config)
    config.num_hidden_layers, config.vocab_size, config.use_cache = layers, VOCABULARY, False
    config.bos_token_id = config.eos_token_id = 0
    config.pad_token_id = None
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    if setting.seq_len > (most := getattr(config, "max_position_embeddings", setting.seq_len)):
        raise UserError(f"--seq-len {setting.seq_len} is more than the {most} positions of the model")
    try:
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    except Exception as error:  # transformers validates with many types of exception
        raise UserError(f"transformers cannot build this model: {str(error).strip().splitlines()[0]}") from error
    if not setting.tunes:
        return model
    from anew.finetune.adapt import prepare
    from anew.finetune.options import FinetuneConfig

    tuning = setting.tuning or FinetuneConfig(lora_parameters={"rank": setting.lora})
    return prepare(model, replace(tuning, num_layers=trained))


def _step(model: nn.Module, ids: torch.Tensor) -> None:
    model(input_ids=ids, labels=ids).loss.backward()


def _head(setting: Setting, chip: str) -> Counted:
    """The amounts of embedding, head and loss, from their shapes."""
    config = setting.config
    features, vocabulary = config.hidden_size, config.vocab_size
    device = CountingDevice(load_chip(chip))
    session = Session(Options(device="null", chip=chip), device)
    tiling = Tiling.plan(setting.tokens, vocabulary, longest_tile(features, session))
    shape = Shape(tiling.rows, tiling.tiles[0].size, features, tiling.tiles[0].block)
    ports = shape.ports()
    trained = not setting.tunes
    store = WeightStore(device)
    calls = [compile_function(session, store, "loss forward", forward, ports)]
    ports |= {"largest": (shape.rows, 1)} | ({"cotangent": (shape.rows, features)} if trained else {})
    calls.append(compile_function(session, store, "loss backward", backward(hidden=True, weight=trained), ports))
    tiles = len(tiling.tiles) * len(list(tiling.chunks()))
    once = [_run(call.run.plan, call.run.program, fresh=not at) for at, call in enumerate(calls)]  # type: ignore[attr-defined]
    tables = vocabulary * features * (1 if config.tie_word_embeddings else 2)
    work = (once[0] + once[1]) * tiles + _kept(tiling, ports)
    buffers = FP16_BYTES * (vocabulary * features + 2 * shape.rows * shape.columns)
    return Counted(work, Work(), tables, tables if trained else 0, buffers, 0, 0, 0)


def _kept(tiling: Tiling, ports: Mapping[str, tuple[int, ...]]) -> Work:
    """What is not copied for each tile: the others of its chunk read it, and the backward pass the hidden states."""
    chunks, hidden = len(list(tiling.chunks())), math.prod(ports["hidden"])
    others = sum(math.prod(ports[name]) for name in ("largest", "cotangent") if name in ports)
    padded = tiling.padded != tiling.tokens  # rows that are made anew for each pass
    runs = chunks * len(tiling.tiles)
    elements = hidden * (2 * runs - chunks - padded) + others * (runs - chunks)
    return Work(read=-elements)


def _run(plan: Plan, program: CountingProgram, *, fresh: bool) -> Work:
    """One run for one tile; weights are copied when ``fresh``, and else read where they lie."""
    weights = {port.name: math.prod(port.shape) for port in plan.inputs if port.kind == "weight"}
    inputs = sum(p.type.numel for p in program.inputs)
    outputs = sum(p.type.numel for p in program.outputs)
    there = 0 if fresh else sum(weights.values())
    streams = from_memory(FP16_BYTES * float(inputs + outputs))
    return program.work + streams + Work(dispatches=1, read=inputs - there, write=outputs)
