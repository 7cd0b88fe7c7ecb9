"""llama2.c's files: read and written, and the same text from an independent reader that computes as run.c does."""

import json
import struct

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from anew.cli.main import main
from anew.errors import UserError
from anew.llama2c import read_model, read_tokens, write_model, write_tokens
from anew.train.config import resolve
from anew.train.presets import PRESETS
from tests.pretrained import make_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
}


def make(tied=True, **changes):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(SIZES | changes), tie_word_embeddings=tied)).eval()
    for p in model.parameters():
        if p.dim() == 1:
            torch.nn.init.uniform_(p, 0.5, 1.5)
        else:
            torch.nn.init.normal_(p, std=0.3)
    return model


class Reader:
    """run.c in numpy: the file in its order, neighbours of a head rotated together, one token after another."""

    def __init__(self, path):
        data = path.read_bytes()
        dim, hidden, layers, heads, kv_heads, vocabulary, positions = struct.unpack("<7i", data[:28])
        self.heads, self.kv_heads, self.layers, self.dim = heads, kv_heads, layers, dim
        self.width = width = dim // heads
        floats = np.frombuffer(data, "<f4", offset=28)
        at = 0

        def take(*shape):
            nonlocal at
            size = int(np.prod(shape))
            at += size
            return floats[at - size : at].reshape(shape).astype(np.float64)

        self.embedding = take(abs(vocabulary), dim)
        self.attention_norm = take(layers, dim)
        self.wq = take(layers, dim, dim)
        self.wk, self.wv = take(layers, kv_heads * width, dim), take(layers, kv_heads * width, dim)
        self.wo = take(layers, dim, dim)
        self.ffn_norm = take(layers, dim)
        self.w1, self.w2, self.w3 = take(layers, hidden, dim), take(layers, dim, hidden), take(layers, hidden, dim)
        self.norm = take(dim)
        self.cosines, self.sines = take(positions, width // 2), take(positions, width // 2)
        self.head = self.embedding if vocabulary > 0 else take(-vocabulary, dim)
        assert at == len(floats)
        self.keys = [[] for _ in range(layers)]
        self.values = [[] for _ in range(layers)]

    def rotate(self, x, position):
        pairs = x.reshape(-1, self.width // 2, 2)
        cos, sin = self.cosines[position], self.sines[position]
        a, b = pairs[..., 0], pairs[..., 1]
        return np.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(-1, self.width)

    def forward(self, token, position):
        x = self.embedding[token]
        for i in range(self.layers):
            h = self.rms(x, self.attention_norm[i])
            q = self.rotate(self.wq[i] @ h, position)
            self.keys[i].append(self.rotate(self.wk[i] @ h, position))
            self.values[i].append((self.wv[i] @ h).reshape(-1, self.width))
            out = []
            for head in range(self.heads):
                kv = head // (self.heads // self.kv_heads)
                scores = np.array([k[kv] @ q[head] for k in self.keys[i]]) / np.sqrt(self.width)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                out.append(sum(w * v[kv] for w, v in zip(weights, self.values[i], strict=True)))
            x = x + self.wo[i] @ np.concatenate(out)
            h = self.rms(x, self.ffn_norm[i])
            gate = self.w1[i] @ h
            x = x + self.w2[i] @ (gate / (1 + np.exp(-gate)) * (self.w3[i] @ h))
        return self.head @ self.rms(x, self.norm)

    def rms(self, x, weight):
        return x / np.sqrt((x * x).mean() + 1e-5) * weight

    def greedy(self, prompt, count):
        tokens = list(prompt)
        for position in range(len(prompt) + count - 1):
            logits = self.forward(tokens[position], position)
            if position + 1 == len(tokens):
                tokens.append(int(logits.argmax()))
        return tokens


def greedy(model, prompt, count):
    ids = torch.tensor([prompt])
    done = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=-1
    )
    return done[0].tolist()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_text_of_run_c_is_that_of_transformers(tmp_path, tied, kv_heads):
    model = make(tied, num_key_value_heads=kv_heads)
    write_model(model, tmp_path / "model.bin")
    assert Reader(tmp_path / "model.bin").greedy([5, 17, 280], 16) == greedy(model, [5, 17, 280], 16)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_come_back_to_the_bit(tmp_path, version, tied):
    model = make(tied)
    path = tmp_path / "model.bin"
    write_model(model, path, version)
    back = read_model(path)
    for (name, a), (other, b) in zip(model.named_parameters(), back.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, back(ids).logits)
    again = tmp_path / "again.bin"
    write_model(back, again, version)
    assert path.read_bytes() == again.read_bytes()


@pytest.mark.usefixtures("terse")
def test_a_trained_model_says_the_same_in_all_forms(tmp_path, monkeypatch, capsys):
    """Train on tokens, convert to model.bin, back to a folder, and go on training from either."""
    monkeypatch.chdir(tmp_path)
    make_tokenizer().save_pretrained("tokenizer")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    (tmp_path / "small.json").write_text(json.dumps({"model_type": "llama", **SIZES}))
    assert main(["tokenize", "--data", "text.txt", "--tokenizer", "tokenizer", "--out", "text.bin"]) == 0
    flags = "--data text.bin --tokenizer tokenizer --steps 3 --seq-len 16 --batch-size 2 --device emulator --lr 0.01"
    assert main(f"train --preset small.json {flags} --out runs/a".split()) == 0
    assert main(["convert", "runs/a/model", "a.bin"]) == 0
    assert main(["convert", "a.bin", "folder", "--tokenizer", "tokenizer"]) == 0
    models = [LlamaForCausalLM.from_pretrained(path).eval() for path in ("runs/a/model", "folder")]
    texts = [greedy(model, [5, 17, 250], 12) for model in models]
    assert texts[0] == texts[1] == Reader(tmp_path / "a.bin").greedy([5, 17, 250], 12)
    for source, tokenizer in (("a.bin", "--tokenizer tokenizer"), ("folder", "")):
        out = f"runs/{source.replace('.', '-')}"
        words = f"train --init-from {source} {tokenizer} --data text.bin --steps 1 --seq-len 16 --batch-size 2"
        assert main(f"{words} --device emulator --out {out}".split()) == 0
    curves = [(tmp_path / run / "metrics.jsonl").read_text().splitlines()[0] for run in ("runs/a-bin", "runs/folder")]
    first = [json.loads(line)["val_loss"] for line in curves]
    last = json.loads((tmp_path / "runs/a/metrics.jsonl").read_text().splitlines()[-1])["val_loss"]
    assert first[0] == first[1] == pytest.approx(last, rel=1e-3)


def test_stories110m_has_its_parameters():
    with torch.device("meta"):
        settings = dict(PRESETS["stories110m"].model)
        assert settings.pop("model_type") == "llama"
        model = LlamaForCausalLM(LlamaConfig(**settings))
    assert sum(p.numel() for p in model.parameters()) == 109_529_856
    config = model.config
    found = (config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads)
    assert found == (12, 768, 2048, 12)
    assert config.vocab_size == 32000
    assert config.tie_word_embeddings
    assert config.hidden_act == "silu"


def test_tokens_in_all_three_forms(tmp_path):
    ids = np.array([1, 5, 299, 7], dtype=np.int32)
    write_tokens(ids, tmp_path / "raw.bin")
    assert (tmp_path / "raw.bin").read_bytes() == ids.astype("<u2").tobytes()
    header = np.zeros(256, "<i4")
    for magic, kind in ((20240520, "<u2"), (20240801, "<u4")):
        header[:3] = magic, 1, len(ids)
        (tmp_path / f"{magic}.bin").write_bytes(header.tobytes() + ids.astype(kind).tobytes())
    for name in ("raw", "20240520", "20240801"):
        assert read_tokens(tmp_path / f"{name}.bin", 300).tolist() == ids.tolist()


def write(path, content):
    path.write_bytes(content)


BAD_TOKENS = {
    "missing": (lambda p: None, "cannot read"),
    "empty": (lambda p: write(p, b""), "is empty"),
    "odd": (lambda p: write(p, b"abc"), "no file of 16-bit tokens"),
    "out of range": (lambda p: write_tokens(np.array([1, 300]), p), "token 1 is id 300"),
    "cut off": (
        lambda p: write(p, np.array([20240520, 1, 9] + [0] * 253, "<i4").tobytes() + b"ab"),
        "its header counts 9 tokens, and it has 1",
    ),
}


@pytest.mark.parametrize("case", BAD_TOKENS)
def test_bad_token_files(tmp_path, case):
    spoil, sentence = BAD_TOKENS[case]
    spoil(tmp_path / "x.bin")
    with pytest.raises(UserError, match=sentence):
        read_tokens(tmp_path / "x.bin", 300)


def cut(path):
    write_model(make(), path)
    path.write_bytes(path.read_bytes()[:-4])


def quantised(path):
    write(path, struct.pack("<Ii", 0x616B3432, 2) + b"\0" * 300)


BAD_MODELS = {
    "missing": (lambda p: None, "cannot read"),
    "short": (lambda p: write(p, b"abc"), "it has 3 bytes"),
    "foreign": (lambda p: write(p, b"text, and more of it, much more than a header"), "header would mean"),
    "cut off": (cut, "is cut off"),
    "quantised": (quantised, "version 2"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models(tmp_path, case, capsys):
    spoil, sentence = BAD_MODELS[case]
    spoil(tmp_path / "x.bin")
    assert main(["convert", str(tmp_path / "x.bin"), str(tmp_path / "y")]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps 1e-05"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_theta 10000"),
        ({"head_dim": 16}, "head_dim 8"),
        ({"attention_bias": True}, "attention_bias False"),
    ],
)
def test_models_that_llama2c_cannot_compute(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        write_model(make(**changes), tmp_path / "x.bin")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("convert folder there", "there is there already"),
        ("convert there there --force", "there is no folder with a model, so --force does not replace it"),
        ("convert there there/dir.bin --force", "there/dir.bin is a folder, and a .bin is a file"),
        ("convert no/such/folder x.bin", "there is no model at no/such/folder"),
        ("convert there/x.bin nowhere/y", "there is no folder nowhere"),
        ("tokenize --data x.txt --tokenizer there --out x.txt", "ends in .bin"),
        ("train --init-from nothing --data x.txt", "there is no model"),
        ("train --init-from there --preset tiny --data x.txt", "exclude each other"),
        ("train --preset tiny --data there/tokens.bin", "give --tokenizer"),
    ],
)
def test_bad_commands_are_one_sentence(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there" / "dir.bin").mkdir(parents=True)
    write_tokens(np.arange(200), tmp_path / "there/tokens.bin")
    assert main(words.split()) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_the_weights_without_a_tokenizer_ask_for_one(tmp_path):
    write_model(make(), tmp_path / "a.bin")
    with pytest.raises(UserError, match="comes without a tokenizer"):
        resolve(None, "x.txt", {"init_from": tmp_path / "a.bin"})
