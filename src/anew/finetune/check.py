"""At the first save: what should train did change, and the device computes with the new weights."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from anew.errors import AnewError
from anew.finetune.batches import SHORTEST
from anew.frontend.model import options_of

#: How far the device's logits may be from the host's: norm of the difference over norm. SmolLM2-135M's are 0.005 off
#: (``docs/evidence/pretrained.json``).
TOLERANCE = 0.02
#: The same where the base has 8 bits and the host's has not: several times what that does to SmolLM2-135M's logits.
TOLERANCE_8_BITS = 0.2


class FirstSave:
    """Remembers what a model began with, to check it once.

    Attributes:
        updated: whether the optimizer has stepped with a learning rate above 0, so that there is something to check.
    """

    def __init__(self, model: nn.Module) -> None:
        self.updated = False
        self._before: dict[str, str] | None = {name: _digest(p) for name, p in _trained(model)}

    def check(self, model: nn.Module, ids: Tensor) -> str | None:
        """Check once what came of the first updates, and say so in a line; None if there is nothing to check (yet).

        Args:
            model: the model in training.
            ids: tokens of its data, int64 [batch, length]; the start of the first row is computed on device and host.

        Raises AnewError if no weight changed, if a matrix B of an adapter is still zero, or if the device's logits are
        not those of the new weights.
        """
        if self._before is None or not self.updated:
            return None
        before, self._before = self._before, None
        changed = sum(_digest(p) != before[name] for name, p in _trained(model))
        if not changed:
            raise AnewError("no weight changed in training: raise --learning-rate, or check the mask of the data")
        for name, p in _trained(model):
            if ".lora_B." in name and not p.any():
                raise AnewError(
                    f"'{name}' is still zero after training: no gradient reaches it; leave it out of 'keys'"
                )
        said = f"Checked    {changed} of {len(before)} trained tensors changed"
        if options_of(model) is None:
            return said
        return f"{said}; logits of the device are within {_device_error(model, ids[:1, :SHORTEST]):.1e} of the host's"


def _device_error(model: nn.Module, ids: Tensor) -> float:
    """Return how far the device's logits are from those of plain PyTorch with the same weights."""
    wanted, found = _logits(plain_twin(model), ids), _logits(model, ids)
    error = float((found - wanted).norm() / wanted.norm())
    options = options_of(model)
    most = TOLERANCE_8_BITS if options is not None and options.base_bits == 8 else TOLERANCE
    if not error <= most:  # not a number is no less wrong
        raise AnewError(
            f"the device's logits differ from the host's by {error:.2g}, more than {most}: it does not compute "
            "with the weights that were trained; the checkpoint before this one is the last to trust"
        )
    return error


def plain_twin(model: nn.Module) -> nn.Module:
    """Return a copy of a compiled model that computes in plain PyTorch, with the very tensors of the model."""
    shared = {id(x): x for x in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, dict(shared))


@torch.no_grad()
def _logits(model: Any, ids: Tensor) -> Tensor:
    training = model.training
    model.eval()
    logits: Tensor = model(input_ids=ids).logits.float()
    model.train(training)
    return logits


def _trained(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _digest(x: Tensor) -> str:
    return hashlib.sha256(x.detach().contiguous().numpy().tobytes()).hexdigest()
