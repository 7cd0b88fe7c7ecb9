"""Optimizers that read gradients in the engine's buffers and write weights into them: AdamW and Adam of PyTorch."""

from anew.optim.adam import EngineAdam, EngineAdamW, OnEngine, clip_norm, settle

__all__ = ["EngineAdam", "EngineAdamW", "OnEngine", "clip_norm", "settle"]
