"""What one training step of a Llama of one layer comes to on the engine: python examples/explain_llama_layer.py."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import anew
from anew.frontend.explain import Explanation


def main() -> Explanation:
    """Print the explanation, then what to read in it."""
    config = LlamaConfig(
        hidden_size=64, intermediate_size=176, num_hidden_layers=1, num_attention_heads=4, vocab_size=256
    )
    tokens = torch.randint(config.vocab_size, (2, 32))
    found = anew.explain(LlamaForCausalLM(config), {"input_ids": tokens, "labels": tokens})
    print(found)
    largest = max(found.programs, key=lambda program: program.flops)
    print(f"\nThe largest program is '{largest.name}': {largest.flops:,} flops, of these operations:")
    for kind, count in sorted(largest.operations.items(), key=lambda item: -item[1]):
        print(f"{count:6} {kind}")
    fallbacks = [use for use in found.host if use.kind == "fallback"]
    print(f"\nOperations that fell back to the host: {len(fallbacks)}")
    return found


if __name__ == "__main__":
    main()
