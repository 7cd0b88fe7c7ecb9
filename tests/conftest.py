"""Fixtures that several groups of tests share."""

import gc
import logging

import pytest
from hypothesis import settings

# Every run tries the same cases, here as in CI; --hypothesis-profile=default draws new ones.
settings.load_profile("ci")


def pytest_collection_finish():
    """Keep out of the tests' time what serves none of them.

    Garbage is collected less often, and not among what collecting has imported. PyTorch prints every graph it captures
    as text if its trace has a handler; pytest gives one to each logger whose records do not reach the root.
    """
    logging.getLogger("torch.__trace").propagate = True
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture
def young():
    """Let garbage be looked for among what the test makes alone, not among all that is there before it."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def fresh():
    """Forget what Dynamo and anew compiled before, so that counts start at zero; call it to forget again."""
    import torch

    from anew.frontend.session import session_for

    def forget():
        torch._dynamo.reset()
        session_for.cache_clear()

    forget()
    return forget


@pytest.fixture
def terse(monkeypatch):
    """Let runs sample two tokens, and end without a projection, which captures several small models."""
    from anew.errors import UserError
    from anew.train.generate import generate

    def refuse(setting, chip):
        raise UserError("nothing is counted here")

    monkeypatch.setattr("anew.estimate.run.count_step", refuse)
    for module in ("anew.train.run", "anew.finetune.sample"):
        monkeypatch.setattr(f"{module}.generate", lambda *arguments: generate(*arguments[:-1], 2))


@pytest.fixture
def llama():
    """A maker of tiny Llamas, equal for equal arguments: ``llama(layers=2, kv_heads=2, dim=32)``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(layers=2, kv_heads=2, dim=32, **config):
        torch.manual_seed(0)
        sizes = {
            "hidden_size": dim,
            "intermediate_size": dim + 16,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": kv_heads,
            "vocab_size": 64,
            "max_position_embeddings": 64,
            "use_cache": False,
        }
        return LlamaForCausalLM(LlamaConfig(**(sizes | config)))

    return make
