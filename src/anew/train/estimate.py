"""How much memory a run will take, said before it starts: a machine that swaps for hours helps nobody."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from anew.errors import UserError
from anew.train.config import TrainConfig
from anew.train.memory import available_memory
from anew.train.model import build_model, count_parameters

#: Bytes of a parameter: fp32 weight, gradient and AdamW's two moments; on an engine fp16 in two forms besides.
PLAIN, ON_ENGINE = 16, 4
#: Tensors as large as the logits that live at the peak besides those that the backward pass waits for: gradients and
#: temporaries of the cross-entropy. Fitted to measured peaks, see ``python -m evidence memory``.
LOGITS = 4


def needed_memory(config: TrainConfig) -> float:
    """Return the bytes that model, optimizer and one step will take in about, beyond what the process has now.

    A model without storage runs forward once, which finds the exact size of what the backward pass will wait for.
    """
    with FakeTensorMode():
        model = build_model(config.model, SimpleNamespace(bos_token_id=None, eos_token_id=None), config.seed)
        ids = torch.zeros(config.batch_size, config.seq_len, dtype=torch.int64)
        kept = kept_for_backward(model, ids)
    logits, parameters = 4 * ids.numel() * config.model["vocab_size"], count_parameters(model)
    if config.device != "cpu":  # head and loss never hold all logits
        return (PLAIN + ON_ENGINE) * parameters + kept - logits
    return PLAIN * parameters + kept + LOGITS * logits


def kept_for_backward(model: Any, ids: Tensor) -> int:
    """Bytes of the tensors that autograd keeps in a forward pass with loss, the model's own parameters left out."""
    storages: dict[int, Any] = {}

    def note(x: Tensor) -> Tensor:
        storages[x.untyped_storage()._cdata] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        logits = model(input_ids=ids).logits.float()
        F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    own = _storages(model)
    return sum(storage.nbytes() for key, storage in storages.items() if key not in own)


def _storages(model: nn.Module) -> set[int]:
    return {p.untyped_storage()._cdata for p in model.parameters()}


def check_memory(config: TrainConfig) -> float | None:
    """Return the bytes that a run will take; None if the model cannot be run without storage.

    Raises UserError with both numbers if more is needed than there is, unless the settings allow to swap.
    """
    try:
        needed = needed_memory(config)
    except UserError:
        raise
    except Exception:  # a model of transformers may look at its values, which are not there
        return None
    available = available_memory()
    if needed > available and not config.allow_swap:
        raise UserError(
            f"this run needs about {needed / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are available: lower "
            "--batch-size or --seq-len (--grad-accum makes up for it), or give --allow-swap to start anyway"
        )
    return needed
