"""Evaluating a causal language model: its loss and perplexity on rows of tokens."""
