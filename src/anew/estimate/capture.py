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
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from anew.chips import load_chip
from anew.compiler.gains import Gain
from anew.errors import UserError
from anew.estimate.counted import Counted, Setting, mean_call
from anew.estimate.counting import CountingDevice
from anew.estimate.head import LOSS_PROGRAMS, count_head, loss_of
from anew.frontend.layers import repeated_layers
from anew.frontend.loss.causal_lm import verdict_of
from anew.frontend.model import compile_in
from anew.frontend.options import Options
from anew.frontend.placement import PlacementWarning
from anew.frontend.recorder import HostRecorder
from anew.frontend.region import GraphCall
from anew.frontend.session import Session
from anew.frontend.staleness import mark
from anew.frontend.typical import TypicalScales
from anew.optim.adam import EngineAdamW

#: Vocabulary of the small models.
VOCABULARY = 64
#: What stands for a weight's numbers: the largest of a matrix at work. No amount depends on others.
WEIGHT = 0.1
#: Bytes an element of a host operation's result stands for: two fp32 operands read, one result written.
TOUCHED = 12


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
    total = one + (two + one * -1.0) * (trained - 1) + count_head(setting, chip)
    if trained < layers:  # below them no gradient is asked for
        two = _Small(setting, chip, trained=1).count()
        total += (two + one * -1.0) * (layers - trained)
    return replace(total, programs=two.programs + LOSS_PROGRAMS)


def gains_of(setting: Setting, chip: str) -> list[tuple[Gain, int]]:
    """What choices by a chip's prices take off a step's programs, and how many times a step runs each."""
    small = _Small(setting, chip)
    small.count()
    layers = [(gain, setting.trained_layers) for gain in small.session.gains if " loss" not in gain.program]
    tiling, _, head = loss_of(setting, load_chip(chip))
    return [*layers, *([(head, tiling.runs)] if head else [])]


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
            return mean_call(self._count(measures=True), lean)

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
