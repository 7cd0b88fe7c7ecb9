"""`anew evaluate`: the loss that PyTorch finds in fp64, row by row; bad input in one sentence."""

import json
import math
import re

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import anew
from anew.adapters import save_adapter
from anew.cli.main import main
from anew.evaluation import perplexity, windows
from anew.finetune.batches import Batches
from anew.finetune.examples import Example
from anew.finetune.loop import evaluate
from tests.pretrained import adapt, make_tokenizer, save_pretrained

pytestmark = pytest.mark.usefixtures("fresh")
TEXT = "It is a truth universally acknowledged, that a single man must be in want of a wife.\n"


def examples_of(lengths, seed=0):
    """Examples of random ids, the first third of each masked."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(4, 64, (length,), generator=generator).tolist() for length in lengths]
    return [Example(ids, [0 < i >= len(ids) // 3 for i in range(len(ids))]) for ids in rows]


def reference(model, examples):
    """The mean over tokens in fp64, without padding or batches, and the number of tokens."""
    model = model.double()
    losses = []
    for example in examples:
        ids = torch.tensor(example.ids)
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0]
        each = F.cross_entropy(logits[:-1], ids[1:], reduction="none")
        losses += each[torch.tensor(example.counted[1:])].tolist()
    return sum(losses) / len(losses), len(losses)


@pytest.mark.parametrize(("device", "tolerance"), [("cpu", 1e-6), ("emulator", 1e-3)])
def test_rows_of_all_lengths(device, tolerance, llama):
    examples = examples_of([3, 40, 64, 9, 80, 31, 17])
    model = llama(initializer_range=0.2, max_position_embeddings=128)
    if device == "emulator":
        model = anew.compile(model, device="emulator", strict=True)
    found = evaluate(model.train(), Batches(examples, 3, 80).spread(-1))
    loss, _ = reference(llama(initializer_range=0.2, max_position_embeddings=128), examples)
    assert found == pytest.approx(loss, rel=tolerance)
    assert model.training


def test_perplexity():
    assert perplexity(math.log(7)) == pytest.approx(7)
    assert perplexity(1e4) == math.inf


def test_every_token_of_a_text_but_the_first_counts_once():
    tokenizer = make_tokenizer()
    ids = tokenizer(TEXT)["input_ids"] + [tokenizer.eos_token_id]
    found = windows([TEXT], tokenizer, 261, 10)
    assert [x for example in found for x, counted in zip(example.ids, example.counted, strict=True) if counted] == ids[
        1:
    ]
    assert {len(example.ids) for example in found[:-1]} == {10}


@pytest.fixture
def base(llama, tmp_path):
    return save_pretrained(llama(vocab_size=261, initializer_range=0.2), tmp_path / "base")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def shown(capsys):
    """Loss, perplexity, tokens, rows and the device of what was printed."""
    line = r"(?:\[WARNING\].*\n)?Test loss (\S+), Test ppl (\S+)\.\n(\S+) tokens of (\S+) rows \((.*)\)\n"
    return re.fullmatch(line, capsys.readouterr().out).groups()


def test_a_text_with_an_adapter(base, text, tmp_path, capsys):
    model = adapt(AutoModelForCausalLM.from_pretrained(base))
    save_adapter(model, tmp_path / "adapter")
    words = ["--adapter-path", str(tmp_path / "adapter"), "--batch-size", "2", "--max-seq-length", "32"]
    assert main(["evaluate", "--model", str(base), "--data", str(text), *words, "--device", "emulator"]) == 0
    examples = windows([TEXT], make_tokenizer(), 261, 32)
    loss, tokens = reference(model, examples)
    found = shown(capsys)
    assert float(found[0]) == pytest.approx(loss, rel=2e-3)
    assert float(found[1]) == pytest.approx(math.exp(loss), rel=1e-2)
    assert found[2:] == (str(tokens), str(len(examples)), "emulated engine, chip m4, numerics fast")


def test_windows_are_no_longer_than_the_model_takes(base, text, capsys):
    assert main(["evaluate", "--model", str(base), "--data", str(text), "--device", "cpu"]) == 0
    assert shown(capsys)[3] == str(len(windows([TEXT], make_tokenizer(), 261, 64)))


def test_a_loss_that_is_not_finite_is_refused(llama, text, tmp_path, capsys):
    model = llama(vocab_size=261)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    base = save_pretrained(model, tmp_path / "base")
    capsys.readouterr()
    assert main(["evaluate", "--model", str(base), "--data", str(text), "--device", "cpu"]) == 1
    assert "anew: error: the loss is nan" in capsys.readouterr().err


ROWS = {
    "text": ({"text": TEXT}, TEXT + "<end>", ""),
    "chat": (
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
        "<user>hi<end><assistant>ho<end>",
        "<user>hi<end><assistant>",
    ),
    "pair": ({"prompt": "hi", "completion": "ho"}, "<user>hi<end><assistant>ho<end>", "<user>hi<end><assistant>"),
}


@pytest.mark.parametrize("given", ["file", "folder"])
@pytest.mark.parametrize(
    ("form", "masked"), [("text", False), ("chat", False), ("chat", True), ("pair", False), ("pair", True)]
)
def test_rows_of_jsonl(form, masked, given, base, tmp_path, capsys):
    row, text, prompt = ROWS[form]
    data = tmp_path / "data"
    data.mkdir()
    (data / "test.jsonl").write_text(json.dumps(row) + "\n\n" + json.dumps(row) + "\n")
    flags = ["--mask-prompt"] if masked else []
    path = data if given == "folder" else data / "test.jsonl"
    capsys.readouterr()
    assert main(["evaluate", "--model", str(base), "--data", str(path), "--device", "cpu", *flags]) == 0
    tokenizer = make_tokenizer()
    ids, first = tokenizer(text)["input_ids"][:64], len(tokenizer(prompt)["input_ids"]) if masked else 1
    loss, tokens = reference(
        AutoModelForCausalLM.from_pretrained(base), [Example(ids, [i >= max(first, 1) for i in range(len(ids))])]
    )
    found = shown(capsys)
    assert float(found[0]) == pytest.approx(loss, abs=1e-3)
    assert found[2:4] == (str(2 * tokens), "2")


BAD = {
    "no data": (["--data", "/nowhere.txt"], "there is no data at /nowhere.txt"),
    "batch": (["--batch-size", "0"], "--batch-size is 0; it has to be at least 1"),
    "length": (["--max-seq-length", "1"], "--max-seq-length is 1; it has to be at least 2"),
    "mask": (["--mask-prompt"], "--mask-prompt needs rows of jsonl with a prompt, and "),
    "model": (["--model", "/no/such/model"], "there is no model at /no/such/model: no such file or folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case, base, text, capsys):
    flags, sentence = BAD[case]
    capsys.readouterr()
    assert main(["evaluate", "--model", str(base), "--data", str(text), *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"anew: error: {sentence}")
    assert error.count("\n") == 1


BAD_ROWS = {
    "no json": ("{", "test.jsonl:2: not valid JSON"),
    "no form": ('{"words": "a"}', "test.jsonl:2: its keys are 'words'; a row needs"),
    "empty": ('{"text": ""}', "test.jsonl:2: 'text' is empty"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_by_its_line(case, base, tmp_path, capsys):
    row, sentence = BAD_ROWS[case]
    (tmp_path / "test.jsonl").write_text('{"text": "a"}\n' + row + "\n")
    capsys.readouterr()
    assert main(["evaluate", "--model", str(base), "--data", str(tmp_path)]) == 1
    assert sentence in capsys.readouterr().err


UNCOUNTED = {
    "nothing": ("\n", [], "holds no rows"),
    "all masked": (
        '{"prompt": "a long question", "completion": "x"}',
        ["--max-seq-length", "9", "--mask-prompt"],
        "has a token for the loss: raise --max-seq-length",
    ),
}


@pytest.mark.parametrize("case", UNCOUNTED)
def test_rows_without_anything_that_counts(case, base, tmp_path, capsys):
    content, flags, sentence = UNCOUNTED[case]
    (tmp_path / "test.jsonl").write_text(content)
    capsys.readouterr()
    assert main(["evaluate", "--model", str(base), "--data", str(tmp_path), *flags]) == 1
    assert sentence in capsys.readouterr().err


def test_binary_data_is_one_sentence(base, capsys):
    capsys.readouterr()
    assert main(["evaluate", "--model", str(base), "--data", str(base / "model.safetensors")]) == 1
    assert "is binary, not text" in capsys.readouterr().err
