"""`anew fuse`: a plain model with the adapter's logits, for transformers and for mlx_lm."""

import json

import mlx.core as mx
import mlx_lm
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from anew.adapters import save_adapter
from anew.cli.main import main
from tests.pretrained import adapt, save_gguf, save_pretrained

TOKENS = torch.arange(24).reshape(2, 12) + 4


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits.float()


def mlx_logits(folder):
    model, _ = mlx_lm.load(str(folder))
    return torch.tensor(model(mx.array(TOKENS.tolist())).tolist())


@pytest.fixture
def base(llama, tmp_path):
    return save_pretrained(llama(vocab_size=261), tmp_path / "base")


def fresh(base):
    return AutoModelForCausalLM.from_pretrained(base).eval()


@pytest.fixture
def adapter(base, tmp_path):
    save_adapter(adapt(fresh(base)), tmp_path / "adapters")
    return tmp_path / "adapters"


def fuse(base, adapter, out, *flags):
    return main(["fuse", "--model", str(base), "--adapter-path", str(adapter), "--save-path", str(out), *flags])


@pytest.mark.parametrize("form", [{}, {"use_dora": True}, {"use_rslora": True}, {"target_modules": ["lm_head"]}])
def test_a_plain_model_with_the_logits_of_the_adapter(form, base, tmp_path, capsys):
    adapted = adapt(fresh(base), **form)
    save_adapter(adapted, tmp_path / "adapters")
    out = tmp_path / "deep" / "fused"
    assert fuse(base, tmp_path / "adapters", out) == 0
    assert f"{out} (llama, layers 2, dim 32" in capsys.readouterr().out
    torch.testing.assert_close(logits(fresh(out)), logits(adapted), rtol=1e-4, atol=1e-4)
    assert (logits(fresh(out)) - logits(fresh(base))).abs().max() > 0.02
    assert set(load_file(out / "model.safetensors")) == set(load_file(base / "model.safetensors"))
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(base).chat_template
    assert json.loads((out / "config.json").read_text())["use_cache"]
    torch.testing.assert_close(mlx_logits(out), logits(adapted), rtol=1e-4, atol=1e-4)


def test_an_adapted_head_is_untied_from_the_embedding(llama, tmp_path):
    base = save_pretrained(llama(vocab_size=261, tie_word_embeddings=True), tmp_path / "base")
    adapted = adapt(fresh(base), target_modules=["lm_head"])
    adapted.save_pretrained(tmp_path / "adapters")  # as peft does: mlx_lm has no head to adapt here
    assert fuse(base, tmp_path / "adapters", tmp_path / "fused") == 0
    torch.testing.assert_close(logits(fresh(tmp_path / "fused")), logits(adapted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.01), ("bfloat16", 0.1)])
def test_the_type_of_the_weights(dtype, tolerance, base, adapter, tmp_path):
    assert fuse(base, adapter, tmp_path / "fused", "--dtype", dtype) == 0
    tensors = load_file(tmp_path / "fused" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "fused", dtype=torch.float32)
    torch.testing.assert_close(logits(model), logits(adapt(fresh(base))), rtol=0, atol=tolerance)


def test_a_base_from_gguf(llama, base, adapter, tmp_path):
    path = save_gguf(llama(vocab_size=261), tmp_path / "base.gguf")
    assert fuse(path, adapter, tmp_path / "fused") == 0
    torch.testing.assert_close(logits(fresh(tmp_path / "fused")), logits(adapt(fresh(base))), rtol=1e-4, atol=1e-4)


ROPES = {
    "base": {"rope_type": "default", "rope_theta": 500_000.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


@pytest.mark.parametrize("rope", ROPES)
def test_mlx_lm_finds_the_rotary_embedding(rope, llama, tmp_path):
    base = save_pretrained(llama(vocab_size=261, rope_parameters=ROPES[rope]), tmp_path / "base")
    adapted = adapt(fresh(base))
    save_adapter(adapted, tmp_path / "adapters")
    assert fuse(base, tmp_path / "adapters", tmp_path / "fused") == 0
    torch.testing.assert_close(logits(fresh(tmp_path / "fused")), logits(adapted), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mlx_logits(tmp_path / "fused"), logits(adapted), rtol=1e-4, atol=1e-4)
    assert (mlx_logits(tmp_path / "fused") - mlx_logits(base)).abs().max() > 0.02


def test_the_weights_of_full_fine_tuning(base, tmp_path):
    model = fresh(base)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    save_adapter(model, tmp_path / "adapters")
    assert fuse(base, tmp_path / "adapters", tmp_path / "fused") == 0
    torch.testing.assert_close(logits(fresh(tmp_path / "fused")), logits(model))


def spoil(adapter, value):
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[min(tensors)].fill_(value)
    save_file(tensors, path)


def test_a_weight_that_is_no_number_is_refused(base, adapter, tmp_path, capsys):
    spoil(adapter, float("nan"))
    assert fuse(base, adapter, tmp_path / "fused") == 1
    assert "anew: error: the adapter cannot be fused: NaNs detected" in capsys.readouterr().err
    assert not (tmp_path / "fused").exists()


def test_a_weight_that_fp16_cannot_hold_is_refused(base, adapter, tmp_path, capsys):
    spoil(adapter, 1e6)
    assert fuse(base, adapter, tmp_path / "fused", "--dtype", "float16") == 1
    assert "float16 cannot hold: choose another --dtype" in capsys.readouterr().err
    assert not (tmp_path / "fused").exists()


def test_what_is_there_already_stays(base, adapter, tmp_path, capsys):
    before = logits(fresh(base))
    assert fuse(base, adapter, base) == 1
    assert capsys.readouterr().err.endswith(f"{base} is there already: remove it or choose another --save-path\n")
    assert fuse(base, adapter, base / "config.json") == 1
    assert fuse(base, adapter, base / "config.json" / "fused") == 1
    assert "exists; choose another --save-path" in capsys.readouterr().err
    torch.testing.assert_close(logits(fresh(base)), before, rtol=0, atol=0)


def test_no_adapter_is_one_sentence(base, tmp_path, capsys):
    assert fuse(base, tmp_path / "none", tmp_path / "fused") == 1
    assert capsys.readouterr().err.endswith(
        "there is no adapter in " + str(tmp_path / "none") + ": it has no adapter_config.json\n"
    )


def test_a_full_disk_leaves_nothing(base, adapter, tmp_path, capsys, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    assert fuse(base, adapter, tmp_path / "fused") == 1
    assert "No space left on device; free some space or choose another folder" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapters"}
