"""Gradients of a 4-layer Llama on the emulated engine against PyTorch in fp64, for every parameter."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import anew
from anew.frontend.scales import FIRST
from evidence import record

VOCABULARY, LENGTH = 4096, 256


@dataclass
class Gradients:
    """Worst and median figures over all parameters: cosine and ``||g - g64|| / ||g64||``."""

    worst_cosine: float
    worst_error: float
    median_error: float
    worst_parameter: str
    rescaled: int = 0


def model(kv_heads: int = 6) -> LlamaForCausalLM:
    """The model: 4 layers, dim 288, 6 heads, hidden 768, vocabulary 4096, at random initialisation."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=288,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=kv_heads,
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def trained_like(net: nn.Module) -> None:
    """Weights three times larger, norm weights uniform in [0.5, 2]."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 2.0, generator=generator)
            else:
                parameter.mul_(3.0)


def large_activations(net: LlamaForCausalLM) -> None:
    """Embeddings of rms 100, so that the residual stream is."""
    with torch.no_grad():
        weight = net.model.embed_tokens.weight
        weight.mul_(100.0 / weight.square().mean().sqrt())


def unchanged(net: nn.Module) -> None:
    """Random initialisation as it is."""


def tokens() -> Tensor:
    """One sequence of random tokens, [1, LENGTH + 1]."""
    return torch.randint(0, VOCABULARY, (1, LENGTH + 1), generator=torch.Generator().manual_seed(2))


def loss(net: nn.Module, x: Tensor) -> Tensor:
    """Mean cross-entropy of the next token."""
    logits = net(input_ids=x[:, :-1]).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())


def gradients(net: nn.Module, x: Tensor, factor: float = 1.0) -> dict[str, Tensor]:
    """The gradients of ``factor * loss``, divided by ``factor``, in fp64."""
    net.zero_grad(set_to_none=True)
    (loss(net, x) * factor).backward()
    return {n: p.grad.double() / factor for n, p in net.named_parameters() if p.grad is not None}


def compare(found: dict[str, Tensor], reference: dict[str, Tensor]) -> Gradients:
    """Figures over all parameters."""
    cosines, errors = {}, {}
    for name, want in reference.items():
        got = found[name]
        norms = got.norm() * want.norm()
        cosines[name] = float((got * want).sum() / norms) if norms > 0 else 0.0
        errors[name] = float((got - want).norm() / want.norm())
    worst = max(errors, key=lambda n: errors[n])
    return Gradients(min(cosines.values()), errors[worst], statistics.median(errors.values()), worst)


def measure(
    prepare: Callable[[LlamaForCausalLM], None] = unchanged,
    *,
    kv_heads: int = 6,
    numerics: str = "exact",
    jump: float = 1.0,
    calls: int = 1,
) -> Gradients:
    """Gradients after some calls, the first of which calibrates; ``jump`` multiplies the cotangents of the last one."""
    net = model(kv_heads)
    prepare(net)
    reference = gradients(copy.deepcopy(net).double(), tokens())
    anew.compile(net, device="emulator", chip="m4", numerics=numerics, strict=True)
    for _ in range(calls):
        gradients(net, tokens())
    found = compare(gradients(net, tokens(), jump), reference)
    found.rescaled = anew.statistics(net).rescaled
    return found


CASES: dict[str, Callable[[], Gradients]] = {
    "random": lambda: measure(),
    "trained": lambda: measure(trained_like),
    "grouped": lambda: measure(trained_like, kv_heads=2),
    "rms100": lambda: measure(large_activations),
    "jump8": lambda: measure(jump=8.0),
    "random_lean": lambda: measure(calls=FIRST),
    "trained_lean": lambda: measure(trained_like, calls=FIRST),
    "rms100_lean": lambda: measure(large_activations, calls=FIRST),
}


def main() -> None:
    """Measure every case and write the record."""
    record.write("gradients", {name: asdict(case()) for name, case in CASES.items()})
