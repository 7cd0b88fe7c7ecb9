"""What the engine's arithmetic does to gradients, and what operand scales cure: the same model under each setting."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict

from transformers import LlamaForCausalLM

import anew
from evidence import record
from evidence.gradients import Gradients, compare, gradients, model, tokens, trained_like, unchanged

#: setting -> (scaling, loss scale)
SETTINGS = {
    "none_1": ("none", 1.0),
    "none_256": ("none", 256.0),
    "none_65536": ("none", 65536.0),
    "operands": ("operands", 1.0),
}


def measure(prepare: Callable[[LlamaForCausalLM], None], scaling: str, loss_scale: float) -> Gradients:
    """Gradients in ``exact`` on m4 under one setting, after one calibrating call, against fp64."""
    net = model()
    prepare(net)
    reference = gradients(copy.deepcopy(net).double(), tokens())
    anew.compile(net, device="emulator", chip="m4", numerics="exact", strict=True, scaling=scaling)
    gradients(net, tokens(), loss_scale)
    return compare(gradients(net, tokens(), loss_scale), reference)


def baseline(prepare: Callable[[LlamaForCausalLM], None]) -> Gradients:
    """Plain PyTorch in fp32."""
    net = model()
    prepare(net)
    return compare(gradients(net, tokens()), gradients(copy.deepcopy(net).double(), tokens()))


def main() -> None:
    """Measure every setting on both weights and write the record."""
    figures = {}
    for weights, prepare in {"random": unchanged, "trained": trained_like}.items():
        rows = {"fp32": baseline(prepare)}
        rows |= {name: measure(prepare, *setting) for name, setting in SETTINGS.items()}
        figures[weights] = {name: asdict(row) for name, row in rows.items()}
    record.write("arithmetic", figures)
