"""Small random models of many architectures on the emulated engine: coverage, programs, gradients against fp64 PyTorch.

The configurations are tiny; what they share with the models of their names is every operation of a layer.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, ViTConfig, ViTForImageClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import anew
from anew.frontend.placement import PlacementWarning
from evidence import record
from evidence.gradients import compare

VOCABULARY, LENGTH, BATCH, CLASSES = 128, 32, 2, 8

#: What the language models have in common; GPT-2 has other names for it.
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Outcome:
    """What a model's training step comes to.

    Attributes:
        coverage: part of the step's matmul and convolution flops on the engine, 0 to 1.
        region_operations: part of the operations inside the regions that run on the engine, 0 to 1; what the host does
            at their boundary by design (a mask made finite) is none of them.
        programs, dispatches: loaded for, and run in, a training step.
        worst_cosine, worst_error: over every parameter, ``exact``, after one calibrating step.
        worst_parameter: whose error that is.
        vanishing: parameters whose gradient is 0 but for rounding (a bias of keys without rotation shifts all scores
            of a row alike); they have no cosine. vanishing_norm: their largest gradient norm over the largest of all.
    """

    coverage: float
    region_operations: float
    programs: int
    dispatches: int
    worst_cosine: float
    worst_error: float
    worst_parameter: str
    vanishing: tuple[str, ...]
    vanishing_norm: float


#: A gradient whose norm is below this part of the largest one's is rounding, in fp64.
VANISHES = 1e-9


def language_model(kind: str, **config: Any) -> Callable[[], tuple[nn.Module, dict[str, Tensor]]]:
    """A maker of a causal language model of that ``transformers`` kind, and of tokens with labels."""

    def make() -> tuple[nn.Module, dict[str, Tensor]]:
        torch.manual_seed(0)
        net = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**config))
        tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
        return net, {"input_ids": tokens, "labels": tokens}

    return make


def vision_transformer() -> tuple[nn.Module, dict[str, Tensor]]:
    """A ViT on 16 x 16 images in patches of 4, and images with labels."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
        num_labels=CLASSES,
    )
    return ViTForImageClassification(config), _images("pixel_values")


class ConvolutionalNetwork(nn.Module):
    """Two convolutions with batch norm, pooling and a linear head; returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, CLASSES),
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of images [batch, 3, 16, 16] with labels [batch]."""
        return nn.functional.cross_entropy(self.body(images), labels)


def convolutional_network() -> tuple[nn.Module, dict[str, Tensor]]:
    """The network, and images with labels."""
    torch.manual_seed(0)
    return ConvolutionalNetwork(), _images("images")


def _images(name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 16, 16, generator=generator)
    return {name: images, "labels": torch.randint(0, CLASSES, (4,), generator=generator)}


CASES: dict[str, Callable[[], tuple[nn.Module, dict[str, Tensor]]]] = {
    "llama": language_model("llama", **SIZES),
    "smollm2": language_model("llama", **SIZES | {"tie_word_embeddings": True, "rope_theta": 100000.0}),
    "qwen2": language_model("qwen2", **SIZES),
    "qwen3": language_model("qwen3", **SIZES),
    "mistral": language_model("mistral", **SIZES, sliding_window=16),
    "gemma": language_model("gemma", **SIZES),
    "gemma_2": language_model("gemma2", **SIZES, sliding_window=16, query_pre_attn_scalar=16),
    "gemma_3": language_model("gemma3_text", **SIZES, sliding_window=16, query_pre_attn_scalar=16),
    "gpt2": language_model(
        "gpt2",
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=64,
        vocab_size=VOCABULARY,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
    "vit": vision_transformer,
    "convolutional": convolutional_network,
}


TITLES = {
    "llama": "Llama",
    "smollm2": "SmolLM2",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mistral": "Mistral",
    "gemma": "Gemma",
    "gemma_2": "Gemma 2",
    "gemma_3": "Gemma 3",
    "gpt2": "GPT-2",
    "vit": "ViT",
    "convolutional": "convolutional network",
}


def gradients(net: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every parameter's gradient, in fp64; a tensor as result is the loss."""
    net.zero_grad(set_to_none=True)
    result = net(**inputs)
    (result if isinstance(result, Tensor) else result.loss).backward()
    return {name: p.grad.double() for name, p in net.named_parameters() if p.grad is not None}


def compiled(net: nn.Module) -> nn.Module:
    """Compile a model's repeated layers, or the whole model when it has none."""
    options = {"device": "emulator", "chip": "m4", "numerics": "exact"}
    if isinstance(net, ConvolutionalNetwork):
        return torch.compile(net, backend="anew", fullgraph=True, dynamic=False, options=options)
    return anew.compile(net, **options)


def measure(name: str) -> Outcome:
    """Explain and run two training steps of one architecture; the second one's gradients count."""
    net, inputs = CASES[name]()
    explained = anew.explain(net, inputs)
    wide = {key: x.double() if x.is_floating_point() else x for key, x in inputs.items()}
    reference = gradients(copy.deepcopy(net).double(), wide)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlacementWarning)  # the coverage says it
        engine = compiled(net)
        gradients(engine, inputs)
        found = {n.removeprefix("_orig_mod."): g for n, g in gradients(engine, inputs).items()}
    largest = max(g.norm() for g in reference.values())
    vanishing = tuple(n for n, g in reference.items() if g.norm() < VANISHES * largest)
    judged = compare(found, {n: g for n, g in reference.items() if n not in vanishing})
    kept = sum(use.calls for use in explained.host if use.kind == "fallback")
    return Outcome(
        explained.coverage,
        explained.engine_operations / (explained.engine_operations + kept),
        len(explained.programs),
        explained.dispatches,
        judged.worst_cosine,
        judged.worst_error,
        judged.worst_parameter,
        vanishing,
        max((float(found[n].norm() / largest) for n in vanishing), default=0.0),
    )


#: Columns of the table in the docs: heading, figure, format.
COLUMNS = (
    ("flops of a step on the engine", "coverage", ".1%"),
    ("operations of the layers on the engine", "region_operations", ".1%"),
    ("programs", "programs", "d"),
    ("dispatches a step", "dispatches", "d"),
    ("worst cosine", "worst_cosine", ".5f"),
    ("worst error", "worst_error", ".2%"),
)


def main() -> None:
    """Measure every architecture, write the record and its table in docs/models.md."""
    figures = {name: asdict(measure(name)) for name in CASES}
    record.write("architectures", figures)
    rows = [["model", *(heading for heading, _, _ in COLUMNS)], ["---"] * (len(COLUMNS) + 1)]
    for name, row in figures.items():
        quoted = (f'[{row[key]:{form}}](evidence/architectures.json "{name}.{key}")' for _, key, form in COLUMNS)
        rows.append([TITLES[name], *quoted])
    record.write_table("models.md", "architectures", rows)
