"""One adapter under two conventions: names, shapes and settings of ``peft`` and of ``mlx_lm``, and the way between.

============  ===============================================  =================================
what          peft (``base_model.model.`` + module + ...)      mlx_lm (module + ...)
============  ===============================================  =================================
A             ``.lora_A.weight`` [r, in]                       ``.lora_a`` [in, r]
B             ``.lora_B.weight`` [out, r]                      ``.lora_b`` [r, out]
DoRA's size   ``.lora_magnitude_vector`` [out]                 ``.m`` [out]
scale         ``lora_alpha / r``; rsLoRA ``lora_alpha / sqrt(r)``  ``lora_parameters.scale``
============  ===============================================  =================================

Sources: peft 0.21 ``docs/source/developer_guides/checkpoint.md``; mlx_lm 0.32 ``tuner/utils.py``, ``lora.py``,
``dora.py``. Module names are those of the checkpoint, which mlx_lm keeps for Llama and its like.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from anew.errors import UserError

CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
MLX_WEIGHTS = "adapters.safetensors"

PREFIX = "base_model.model."
#: The end of a tensor's name in peft, and in mlx_lm; matrices are each other's transpose.
ENDS = {".lora_A.weight": ".lora_a", ".lora_B.weight": ".lora_b", ".lora_magnitude_vector": ".m"}
#: A module in a list of layers: its number, and its name inside the layer.
_IN_LAYER = re.compile(r"\.(\d+)\.(.+)$")


def to_mlx(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return peft's tensors under the names and in the shapes of mlx_lm; UserError for one that has no such form."""
    return {_renamed(name, PREFIX, "", ENDS): _turned(tensor) for name, tensor in tensors.items()}


def to_peft(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return mlx_lm's tensors under the names and in the shapes of peft; UserError for one that has no such form."""
    ends = {mlx: peft for peft, mlx in ENDS.items()}
    return {_renamed(name, "", PREFIX, ends): _turned(tensor) for name, tensor in tensors.items()}


def _renamed(name: str, old: str, new: str, ends: Mapping[str, str]) -> str:
    for end, other in ends.items():
        if name.startswith(old) and name.endswith(end):
            return new + name.removeprefix(old).removesuffix(end) + other
    raise UserError(f"an adapter's tensor '{name}' has no form that both peft and mlx_lm know")


def _turned(tensor: Tensor) -> Tensor:
    return tensor.t().contiguous() if tensor.dim() == 2 else tensor


def mlx_settings(model: Any) -> dict[str, Any]:
    """Return what mlx_lm reads from ``adapter_config.json``, for the active adapter of a ``peft.PeftModel``.

    mlx_lm gives adapters to modules named by ``keys`` in the last ``num_layers`` layers; those of them that have no
    tensors in the file keep a B of zero. Raises UserError for adapters of several ranks or scales, of which it has one
    each, and for the adapter of a head that is tied to the embedding.
    """
    from peft.tuners.lora import LoraLayer

    adapter = model.active_adapter
    layers = {name.removeprefix(PREFIX): m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    ranks = {layer.r[adapter] for layer in layers.values()}
    scales = {float(layer.scaling[adapter]) for layer in layers.values()}
    if len(ranks) != 1 or len(scales) != 1:
        raise UserError("mlx_lm has one rank and one scale for all of an adapter: drop rank_pattern and alpha_pattern")
    if has_adapted_tied_head(model):
        raise UserError("mlx_lm has no head apart from the embedding it is tied to: leave lm_head out of the adapter")
    config = model.peft_config[adapter]
    places = {name: _IN_LAYER.search(name) for name in layers}
    first = min((int(place[1]) for place in places.values() if place), default=None)
    depth = model.config.get_text_config().num_hidden_layers
    return {
        "fine_tune_type": "dora" if config.use_dora else "lora",
        "num_layers": 0 if first is None else depth - first,
        "lora_parameters": {
            "rank": ranks.pop(),
            "scale": scales.pop(),
            "dropout": config.lora_dropout,
            "keys": sorted({place[2] if place else name for name, place in places.items()}),
        },
    }


def has_adapted_tied_head(model: Any) -> bool:
    """Whether the output embedding of a ``peft.PeftModel`` is adapted and shares its weight with the input's."""
    head = model.get_output_embeddings()
    return hasattr(head, "base_layer") and head.base_layer.weight is model.get_input_embeddings().weight


def peft_settings(settings: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return ``LoraConfig`` arguments for an adapter of mlx_lm: its configuration, and its tensors' names in peft.

    Raises KeyError or TypeError for settings that are not mlx_lm's.
    """
    parameters = settings["lora_parameters"]
    stems = {name.removeprefix(PREFIX).removesuffix(end) for name in names for end in ENDS if name.endswith(end)}
    return {
        "r": parameters["rank"],
        "lora_alpha": parameters["scale"] * parameters["rank"],
        "lora_dropout": parameters.get("dropout", 0.0),
        "target_modules": sorted(stems),
        "use_dora": settings.get("fine_tune_type") == "dora",
    }
