"""Adapters on disk: one folder that both ``peft`` and ``mlx_lm`` load, and folders that either of them wrote.

``adapter_config.json`` holds the keys of both, ``adapter_model.safetensors`` the tensors under peft's names and
``adapters.safetensors`` those of mlx_lm. Full fine-tuning has mlx_lm's form alone.
"""

from anew.adapters.fuse import fuse
from anew.adapters.load import load_adapter, load_weights
from anew.adapters.save import save_adapter

__all__ = ["fuse", "load_adapter", "load_weights", "save_adapter"]
