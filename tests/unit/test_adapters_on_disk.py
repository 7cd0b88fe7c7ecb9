"""Adapters on disk: written once, loaded by anew, peft and mlx_lm with equal logits; bad folders in one sentence."""

import json
import shutil

import mlx.core as mx
import mlx_lm
import pytest
import torch
import transformers
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.utils import linear_to_lora_layers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from anew.adapters import load_adapter, load_weights, save_adapter
from anew.errors import UserError
from anew.models import load
from tests.pretrained import adapt, save_pretrained

TOKENS = torch.arange(24).reshape(2, 12) + 4
FORMS = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "last_layer": {"layers_to_transform": [1], "target_modules": ["q_proj", "down_proj"]},
    "first_layer": {"layers_to_transform": [0], "target_modules": ["v_proj"]},
    "head": {"target_modules": ["lm_head", "o_proj"]},
}


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@pytest.fixture
def base(llama, tmp_path):
    return save_pretrained(llama(vocab_size=261).eval(), tmp_path / "base")


def fresh(base):
    return AutoModelForCausalLM.from_pretrained(base).eval()


@pytest.fixture
def saved(base, tmp_path):
    """Write an adapter of some form; return its folder and the logits it gives."""

    def save(**config):
        model = adapt(fresh(base), **config)
        save_adapter(model, tmp_path / "adapter", settings={"iters": 7})
        return tmp_path / "adapter", logits(model)

    return save


def mlx_logits(base, adapter):
    model, _ = mlx_lm.load(str(base), adapter_path=adapter and str(adapter))
    return torch.tensor(model(mx.array(TOKENS.tolist())).tolist())


@pytest.mark.parametrize("form", FORMS)
def test_one_folder_for_anew_peft_and_mlx_lm(form, base, saved):
    folder, wanted = saved(**FORMS[form])
    assert (wanted - logits(fresh(base))).abs().max() > 0.05  # the adapter matters
    torch.testing.assert_close(logits(load_adapter(fresh(base), folder)), wanted)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(fresh(base), folder)), wanted)
    torch.testing.assert_close(mlx_logits(base, folder), wanted, rtol=1e-4, atol=1e-4)
    assert json.loads((folder / "adapter_config.json").read_text())["iters"] == 7


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_with_mlx_lm_s_files_alone(form, base, saved):
    folder, wanted = saved(**FORMS[form])
    (folder / "adapter_model.safetensors").unlink()
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    kept = ("fine_tune_type", "num_layers", "lora_parameters")
    path.write_text(json.dumps({key: settings[key] for key in kept}))
    model, _ = load(base, adapter=folder)
    torch.testing.assert_close(logits(model), wanted)


def test_an_adapter_that_mlx_lm_made(base, tmp_path):
    """Made, and given random values, by mlx_lm's own functions; its folder as mlx_lm.lora writes it."""
    parameters = {"rank": 3, "scale": 20.0, "dropout": 0.0}
    model, _ = mlx_lm.load(str(base))
    model.freeze()
    linear_to_lora_layers(model, 1, parameters)
    model.update(tree_map(lambda x: mx.random.normal(x.shape) * 0.05, model.trainable_parameters()))
    folder = tmp_path / "mlx"
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))
    settings = {"model": str(base), "fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(settings))

    wanted = torch.tensor(model(mx.array(TOKENS.tolist())).tolist())
    adapted, _ = load(base, adapter=folder)
    torch.testing.assert_close(logits(adapted), wanted, rtol=1e-4, atol=1e-4)
    save_adapter(adapted, tmp_path / "again")
    torch.testing.assert_close(mlx_logits(base, tmp_path / "again"), wanted, rtol=1e-4, atol=1e-4)


def test_full_fine_tuning(base, saved, tmp_path):
    folder, _ = saved()  # whose files must not be taken for those of what follows
    model = fresh(base).requires_grad_(False)
    weight = model.model.layers[1].mlp.up_proj.weight.requires_grad_()
    with torch.no_grad():
        weight.mul_(-1.0)
    save_adapter(model, folder)
    assert list(load_file(folder / "adapters.safetensors")) == ["model.layers.1.mlp.up_proj.weight"]
    torch.testing.assert_close(logits(load_adapter(fresh(base), folder)), logits(model), rtol=0, atol=0)
    torch.testing.assert_close(mlx_logits(base, folder), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["adapters.safetensors", "adapter_model.safetensors", "0000100_adapters.safetensors"])
def test_weights_of_one_file_into_an_adapter_at_hand(name, base, tmp_path):
    wanted = adapt(fresh(base), seed=2)
    save_adapter(wanted, tmp_path / "adapter", step=100)
    model = adapt(fresh(base), seed=3)
    load_weights(model, tmp_path / "adapter" / name)
    torch.testing.assert_close(logits(model), logits(wanted), rtol=0, atol=0)


@pytest.mark.parametrize("trainable", [True, False])
def test_what_requires_gradients(trainable, base, saved):
    model = load_adapter(fresh(base), saved()[0], trainable=trainable)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if trainable and "lora_" in name
    }


def test_a_save_that_fails_leaves_the_old_adapter(base, saved, monkeypatch):
    folder, wanted = saved()

    def full_disk(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anew.adapters.save.os.fsync", full_disk)
    with pytest.raises(UserError, match=r"cannot write the adapter to .*No space left"):
        save_adapter(adapt(fresh(base), seed=5), folder)
    torch.testing.assert_close(logits(load_adapter(fresh(base), folder)), wanted)
    assert not list(folder.glob(".*"))


def test_ranks_that_differ_have_no_form_in_mlx_lm(base, tmp_path):
    model = adapt(fresh(base), rank_pattern={"q_proj": 2})
    with pytest.raises(UserError, match="one rank and one scale"):
        save_adapter(model, tmp_path / "adapter")


def test_a_tied_head_has_no_form_in_mlx_lm(llama, tmp_path):
    model = adapt(llama(tie_word_embeddings=True), target_modules=["lm_head"])
    with pytest.raises(UserError, match="leave lm_head out of the adapter"):
        save_adapter(model, tmp_path / "adapter")


def test_trained_embeddings_have_no_form_in_both(base, tmp_path):
    model = adapt(fresh(base), modules_to_save=["embed_tokens"])
    with pytest.raises(UserError, match=r"'base_model.model.model.embed_tokens.weight' has no form"):
        save_adapter(model, tmp_path / "adapter")


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_tensor(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(min(tensors))
    save_file(tensors, path)


BAD = {
    "no folder": (shutil.rmtree, "there is no adapter in .*: it has no adapter_config.json"),
    "bad json": (lambda f: (f / "adapter_config.json").write_text("{"), "cannot read .*adapter_config.json"),
    "no object": (lambda f: (f / "adapter_config.json").write_text("[]"), "no JSON object"),
    "no keys": (lambda f: (f / "adapter_config.json").write_text("{}"), "neither the keys of peft nor those of mlx_lm"),
    "other type": (lambda f: edit(f, peft_type="IA3"), "of type IA3; anew loads LORA"),
    "no weights": (lambda f: [p.unlink() for p in f.glob("*.safetensors")], "no adapter weights at .*adapters.safet"),
    "damaged": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"x" * 9), "not a whole safetensors file"),
    "modules": (lambda f: edit(f, target_modules=["nothing"]), "not for this model: Target modules"),
    "rank": (lambda f: edit(f, r=5), r"'base_model.*lora_A.weight' is \[4, 48\], and \[5, 48\] in the model"),
    "lacking": (drop_tensor, "is not whole: it has no 'base_model"),
    "refused": (lambda f: edit(f, target_modules=".*_proj", layers_to_transform=[0]), "peft refuses .*config.json"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_adapter_is_one_sentence(case, base, saved):
    spoil, sentence = BAD[case]
    folder, _ = saved()
    spoil(folder)
    with pytest.raises(UserError, match=sentence) as raised:
        load_adapter(fresh(base), folder)
    assert "\n" not in str(raised.value)


def test_an_adapter_of_a_larger_model(llama, saved):
    folder, _ = saved()
    with pytest.raises(UserError, match="not for this model"):
        load_adapter(llama(dim=64, vocab_size=261), folder)


FAMILIES = {
    "Qwen2Config": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},  # which mlx_lm takes by default
    "Qwen3Config": {"head_dim": 8},
    "MistralConfig": {"sliding_window": None},
    "Gemma2Config": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "Phi3Config": {"pad_token_id": 0},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families(family, tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "vocab_size": 261, "max_position_embeddings": 64}
    torch.manual_seed(0)
    config = getattr(transformers, family)(**(sizes | more | FAMILIES[family]))
    base = save_pretrained(AutoModelForCausalLM.from_config(config).eval(), tmp_path / "base")
    model = adapt(fresh(base))
    save_adapter(model, tmp_path / "adapter")
    torch.testing.assert_close(logits(load_adapter(fresh(base), tmp_path / "adapter")), logits(model))
    torch.testing.assert_close(mlx_logits(base, tmp_path / "adapter"), logits(model), rtol=1e-4, atol=1e-4)
