"""Answers of a pretrained model: the prompt in its chat template, and the text as it comes."""
