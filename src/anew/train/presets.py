"""Presets as data: a model and the settings that train it well, by name."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A Hugging Face model configuration and the default of every training setting."""

    model: dict[str, Any]
    seq_len: int = 256
    batch_size: int = 4
    grad_accum: int = 1
    steps: int = 1000
    lr: float = 5e-4
    warmup: int = 100
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    val_every: int = 100


def llama(dim: int, layers: int, heads: int, hidden: int, vocab: int, max_seq: int) -> dict[str, Any]:
    """Return the configuration of a Llama: RoPE, SwiGLU, RMSNorm, output head tied to the embedding."""
    return {
        "model_type": "llama",
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": hidden,
        "vocab_size": vocab,
        "max_position_embeddings": max_seq,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }


# Every width is a multiple of 32, because the engine pads rows to 64 bytes of fp16.
PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        llama(dim=128, layers=4, heads=4, hidden=352, vocab=1024, max_seq=512),
        seq_len=128,
        batch_size=8,
        steps=500,
        lr=4e-3,
        warmup=60,
        val_every=100,
    ),
    "stories15m": Preset(
        llama(dim=288, layers=6, heads=6, hidden=768, vocab=32000, max_seq=1024),
    ),
    "stories110m": Preset(
        llama(dim=768, layers=12, heads=12, hidden=2048, vocab=32000, max_seq=1024),
        grad_accum=4,
        lr=4e-4,
    ),
}
