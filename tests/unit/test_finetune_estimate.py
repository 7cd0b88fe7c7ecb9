"""The memory estimate of fine-tuning: each part of a run adds what it should, and too much is refused."""

from types import SimpleNamespace

import pytest

from anew.cli.main import main
from anew.errors import UserError
from anew.finetune import estimate
from anew.finetune.adapt import adapt
from anew.finetune.options import FinetuneConfig
from tests.pretrained import save_gguf, save_pretrained


def needed(model, *, length=32, **chosen):
    config = FinetuneConfig(**{"device": "cpu", "num_layers": -1, "batch_size": 2, **chosen})
    if config.grad_checkpoint:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return estimate.needed_memory(model, config, SimpleNamespace(lengths=lambda: [16, length]))


def test_each_part_of_a_run_adds_its_share(llama):
    base = llama()
    layers = sum(p.numel() for p in base.model.layers.parameters())
    full = needed(adapt(llama(), FinetuneConfig(fine_tune_type="full", num_layers=-1)))
    adapted = adapt(base, FinetuneConfig(num_layers=-1))
    lora = needed(adapted)
    assert lora < full
    in_layers = sum(p.numel() for p in base.model.layers.parameters())  # the adapters' too by now
    logits = 4 * 2 * 32 * base.config.vocab_size
    on_engine = needed(adapted, device="emulator")
    assert on_engine - lora == estimate.ON_ENGINE * in_layers - (estimate.LOGITS + 1) * logits
    trained = estimate.TRAINED * (in_layers - layers)
    assert needed(adapted, batch_size=4) - trained == pytest.approx(2 * (lora - trained), rel=0.02)
    assert needed(adapted, length=128) > 3 * lora - 3 * trained
    assert needed(adapted, grad_checkpoint=True) < lora


def test_weights_that_do_not_fit_are_refused_before_they_are_read(llama, tmp_path, monkeypatch, capsys):
    folder = save_pretrained(llama(vocab_size=264), tmp_path / "base")
    save_gguf(llama(vocab_size=264), tmp_path / "model.gguf")
    monkeypatch.setattr(estimate, "available_memory", lambda: 1e5)
    for model in (folder, tmp_path / "model.gguf"):
        assert main(["finetune", "--model", str(model), "--data", str(tmp_path), "--train"]) == 1
        said = capsys.readouterr()
        assert "GB in fp32, and 0.0 GB of memory are available: choose a smaller model, or give --allow-sw" in said.err
        assert "Loading" not in said.out
        estimate.check_weights(FinetuneConfig(model=str(model), allow_swap=True))
    monkeypatch.setattr(estimate, "available_memory", lambda: 1e9)
    estimate.check_weights(FinetuneConfig(model=str(folder)))


def test_training_that_does_not_fit_is_refused_unless_it_may_swap(llama, monkeypatch):
    model = adapt(llama(), FinetuneConfig(num_layers=-1))
    train = SimpleNamespace(lengths=lambda: [32])
    monkeypatch.setattr(estimate, "available_memory", lambda: 1e5)
    with pytest.raises(UserError, match=r"needs about 0\.0 GB of memory beside the model .* lower --batch-size"):
        estimate.check_memory(model, FinetuneConfig(num_layers=-1), train)
    assert estimate.check_memory(model, FinetuneConfig(num_layers=-1, allow_swap=True), train) > 1e5
