"""Pretrained causal language models of transformers: from a folder, a GGUF file or the Hugging Face hub, in fp32."""

from anew.models.load import load

__all__ = ["load"]
