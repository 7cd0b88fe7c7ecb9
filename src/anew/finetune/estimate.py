"""The memory that fine-tuning will take, said before it starts: weights before they are read, then the rest."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from anew.errors import UserError
from anew.finetune.batches import Batches
from anew.finetune.options import FinetuneConfig
from anew.frontend.layers import repeated_layers
from anew.models.quiet import quiet
from anew.models.source import find
from anew.train.estimate import LOGITS, ON_ENGINE, kept_for_backward
from anew.train.memory import available_memory

#: Bytes of a weight in fp32; of one that trains, its gradient and Adam's two moments besides.
WEIGHT, TRAINED = 4, 12


def check_weights(config: FinetuneConfig) -> None:
    """Raise UserError if the weights of a model in a folder or a GGUF file do not fit into memory in fp32.

    A model of the hub that is not here yet is not asked for its size.
    """
    source = find(config.model)
    if source.on_hub or config.allow_swap:
        return
    count = _weights_in_gguf(Path(str(source))) if source.gguf else _weights_in_folder(Path(source.name))
    if WEIGHT * count > (available := available_memory()):
        raise UserError(
            f"{source} has {count / 1e9:.2f} billion weights, {WEIGHT * count / 1e9:.1f} GB in fp32, and "
            f"{available / 1e9:.1f} GB of memory are available: choose a smaller model, or give --allow-swap"
        )


def _weights_in_folder(folder: Path) -> int:
    """Weights by the headers of the safetensors files; 0 for other files."""
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            count += sum(torch.Size(opened.get_slice(name).get_shape()).numel() for name in opened.keys())  # noqa: SIM118
    return count


def _weights_in_gguf(file: Path) -> int:
    try:
        from gguf import GGUFReader

        return sum(int(tensor.n_elements) for tensor in GGUFReader(file).tensors)
    except Exception:  # no such package, a damaged file: loading says so in its own words
        return 0


def needed_memory(model: nn.Module, config: FinetuneConfig, train: Batches) -> float:
    """Return the bytes that training will take in about, beyond the model as :func:`anew.finetune.adapt.adapt` left it.

    A copy without storage runs the longest batch forward once, which finds the exact size of what the backward pass
    will wait for. In plain PyTorch ``grad_checkpoint`` leaves one layer's share of that at a time; on an engine it
    saves next to nothing, and head and loss never hold all logits (``python -m evidence finetune_memory``).
    """
    trained = TRAINED * sum(p.numel() for p in model.parameters() if p.requires_grad)
    layers = repeated_layers(model)
    mode = FakeTensorMode()
    with FakeCopyMode(mode):
        twin: Any = copy.deepcopy(model).train()
    with mode:
        ids = torch.zeros(config.batch_size, train.lengths()[-1], dtype=torch.int64)
        logits = 4 * ids.numel() * twin.config.get_text_config().vocab_size
        checkpointed = kept_for_backward(twin, ids)
        with quiet():  # transformers renames what it is called by
            twin.gradient_checkpointing_disable()
        kept = kept_for_backward(twin, ids)
    if config.device != "cpu":
        return trained + ON_ENGINE * sum(p.numel() for x in layers for p in x.parameters()) + kept - logits
    activations = checkpointed + kept / len(layers) if config.grad_checkpoint else kept
    return trained + activations + LOGITS * logits


def check_memory(model: nn.Module, config: FinetuneConfig, train: Batches) -> float | None:
    """Return the bytes that model and training will take; None if the model cannot be run without storage.

    Raises UserError with both numbers if training needs more than there is, unless the settings allow to swap.
    """
    try:
        needed = needed_memory(model, config, train)
    except UserError:
        raise
    except Exception:  # a model of transformers may look at its values, which are not there
        return None
    if needed > (available := available_memory()) and not config.allow_swap:
        raise UserError(
            f"this run needs about {needed / 1e9:.1f} GB of memory beside the model and {available / 1e9:.1f} GB are "
            "available: lower --batch-size (--grad-accumulation-steps makes up for it) or --max-seq-length, or give "
            "--allow-swap to start anyway"
        )
    return needed + WEIGHT * sum(p.numel() for p in model.parameters())
