"""A probe of the whole: a small Llama takes training steps on the device and on the emulated engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from anew.device.base import Device
from anew.doctor.finding import Finding, reference_engine, relative_error
from anew.frontend.model import compile_in
from anew.frontend.options import Options
from anew.frontend.session import Session

STEPS = 3
#: Two engines that differ by roundings alone stay this close, loss and every gradient of the first step.
LOSS, GRADIENT = 1e-2, 5e-2


def training_step(device: Device) -> Iterator[Finding]:
    """Losses of three steps of AdamW and the gradients of the first, beside the emulated engine's."""
    losses, gradients = _train(device)
    expected, wanted = _train(reference_engine(device))
    apart = max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True))
    worst = max(wanted, key=lambda name: relative_error(gradients[name], wanted[name]))
    error = relative_error(gradients[worst], wanted[worst])
    good = apart <= LOSS and error <= GRADIENT
    yield Finding(
        "training/steps",
        f"losses within {LOSS:.0%} of the emulated engine's, gradients within {GRADIENT:.0%}",
        f"losses within {apart:.1e}, gradients within {error:.1e} ({worst})",
        "agrees" if good else "differs",
        {"losses": losses, "emulated": expected, "worst_gradient": worst, "gradient_error": error},
    )


def _train(device: Device) -> tuple[list[float], dict[str, torch.Tensor]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        max_position_embeddings=64,
    )
    model: Any = LlamaForCausalLM(config)
    options = Options(chip=device.chip.name, loss="apart")
    compile_in(model, Session(options, device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(0, 128, (2, 32), generator=torch.Generator().manual_seed(0))
    losses: list[float] = []
    gradients: dict[str, torch.Tensor] = {}
    for _ in range(STEPS):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        losses.append(loss.item())
        gradients = gradients or {n: p.grad.double().clone() for n, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    return losses, gradients
