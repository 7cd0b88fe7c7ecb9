"""Loading pretrained models: folders and GGUF files, in fp32; what cannot be loaded is one sentence."""

import json
import shutil

import pytest
import torch

from anew.errors import UserError
from anew.models import load
from tests.pretrained import save_gguf, save_pretrained

TOKENS = torch.arange(24).reshape(2, 12) + 4


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@pytest.fixture
def original(llama):
    return llama(vocab_size=261).eval()


@pytest.fixture
def folder(original, tmp_path):
    return save_pretrained(original, tmp_path / "model")


def test_a_folder(original, folder):
    model, tokenizer = load(folder)
    torch.testing.assert_close(logits(model), logits(original), rtol=0, atol=0)
    assert not model.training
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<user>hi<end>"


def test_half_precision_weights_are_loaded_in_fp32(original, tmp_path):
    model, _ = load(save_pretrained(original.to(torch.bfloat16), tmp_path / "model"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("given", ["file", "folder"])
def test_a_gguf_file_loads_and_saves_as_any_model(given, original, tmp_path):
    path = save_gguf(original, tmp_path / "tiny.gguf")
    model, tokenizer = load(path if given == "file" else tmp_path)
    torch.testing.assert_close(logits(model), logits(original))
    assert tokenizer.decode(tokenizer("Hi there<end>")["input_ids"]) == "Hi there<end>"
    assert tokenizer.chat_template is not None
    assert tokenizer.eos_token == "<end>"
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    again, _ = load(tmp_path / "again")
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)


def test_weights_that_the_model_does_not_use_are_told(folder):
    edit(folder, num_hidden_layers=1)
    with pytest.warns(UserWarning, match="holds 9 weights that the model does not use: model.layers.1"):
        load(folder)


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def only(folder, *names):
    """Leave nothing but these files in the folder, which hold eight bytes each."""
    shutil.rmtree(folder)
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"GGUF\1\0\0\0")


BAD = {
    "nothing there": (shutil.rmtree, "there is no model at .*: no such file or folder"),
    "empty": (only, "holds no model: neither config.json nor a .gguf file"),
    "an adapter": (lambda f: only(f, "adapter_config.json"), "holds an adapter: give its base as the model"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds a config.json but no weights"),
    "cut weights": (lambda f: cut(f / "model.safetensors"), "cannot read .*model.safetensors: not a whole safetensors"),
    "bad config": (lambda f: (f / "config.json").write_text("{"), "cannot read .*config.json"),
    "list config": (lambda f: (f / "config.json").write_text("[]"), "config.json: it holds no JSON object"),
    "mlx 4 bit": (lambda f: edit(f, quantization={"bits": 4}), "weights that mlx quantised"),
    "unknown type": (lambda f: edit(f, model_type="frobnicator"), "cannot load .* model type `frobnicator`"),
    "no language model": (lambda f: edit(f, model_type="vit"), "cannot load .*Unrecognized configuration"),
    "more layers": (lambda f: edit(f, num_hidden_layers=3), "lacks 9 weights of its configuration, such as model.l"),
    "wider": (lambda f: edit(f, intermediate_size=99), r"mlp.down_proj.weight is \[32, 48\], not \[32, 99\]"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("token*")], "no tokenizer that transformers can read"),
    "two gguf": (lambda f: only(f, "a.gguf", "b.gguf"), "holds 2 GGUF files: name one of a.gguf, b.gguf"),
    "old gguf": (lambda f: only(f, "a.gguf"), "GGUF version 1; versions 2 and 3 are read"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_one_sentence(case, folder):
    spoil, sentence = BAD[case]
    spoil(folder)
    with pytest.raises(UserError, match=sentence) as raised:
        load(folder)
    assert "\n" not in str(raised.value)


def test_a_damaged_gguf_file_is_one_sentence(original, tmp_path):
    path = save_gguf(original, tmp_path / "tiny.gguf")
    cut(path)
    with pytest.raises(UserError, match=r"cannot load .*tiny.gguf"):
        load(path)
    path.write_bytes(b"no model")
    with pytest.raises(UserError, match="does not start as a GGUF file does"):
        load(path)


def test_another_kind_of_file_is_one_sentence(folder):
    with pytest.raises(UserError, match=r"model.safetensors is no model: give a folder"):
        load(folder / "model.safetensors")


def test_a_name_the_hub_does_not_give(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="there is no folder nobody/nothing, and the Hugging Face hub does not give it"):
        load("nobody/nothing")


def test_a_name_the_hub_does_not_answer_for_is_refused_before_transformers_asks(monkeypatch):
    from huggingface_hub import HfApi
    from transformers import AutoTokenizer

    def unreachable(self, name, timeout):
        raise ConnectionError(f"no answer for {name} in {timeout} s")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("it waits for most of a minute"))
    with pytest.raises(UserError, match="the Hugging Face hub does not give it: no answer for nobody/nothing in 10 s"):
        load("nobody/nothing")
