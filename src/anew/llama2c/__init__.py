"""Files of karpathy's llama2.c: weights (``model.bin``) and token files, in and out."""

from anew.llama2c.tokens import read_tokens, write_tokens
from anew.llama2c.weights import read_config, read_model, write_model

__all__ = ["read_config", "read_model", "read_tokens", "write_model", "write_tokens"]
