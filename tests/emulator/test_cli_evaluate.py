"""`anew evaluate`: the loss that PyTorch finds in fp64, row by row; bad input in one sentence."""

import math
import re

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import anew
from anew.adapters import save_adapter
from anew.cli.main import main
from anew.errors import UserError
from anew.evaluation.loss import IGNORED, Row, evaluate
from anew.evaluation.text import windows
from tests.pretrained import adapt, make_tokenizer, save_pretrained

pytestmark = pytest.mark.usefixtures("fresh")
TEXT = "It is a truth universally acknowledged, that a single man must be in want of a wife.\n"


def rows_of(lengths, seed=0):
    """Rows of random ids, the first third of each masked."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        ids = torch.randint(4, 64, (length,), generator=generator).tolist()
        made.append(Row(ids, [IGNORED if i < length // 3 else x for i, x in enumerate(ids)]))
    return made


def reference(model, rows, length):
    """The mean over tokens in fp64, without padding or batches."""
    model = model.double()
    losses = []
    for row in rows:
        ids, labels = (torch.tensor(list(x[:length])) for x in (row.ids, row.labels))
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0]
        each = F.cross_entropy(logits[:-1], labels[1:], reduction="none")
        losses += each[labels[1:] != IGNORED].tolist()
    return sum(losses) / len(losses), len(losses)


@pytest.mark.parametrize(("device", "tolerance"), [("cpu", 1e-6), ("emulator", 1e-3)])
def test_rows_of_all_lengths(device, tolerance, llama):
    rows = rows_of([3, 40, 64, 9, 100, 31, 17])
    model = llama(initializer_range=0.2, max_position_embeddings=128)
    if device == "emulator":
        model = anew.compile(model, device="emulator", strict=True)
    told = []
    found = evaluate(model.train(), rows, 3, 80, told.append)
    loss, tokens = reference(llama(initializer_range=0.2, max_position_embeddings=128), rows, 80)
    assert found.loss == pytest.approx(loss, rel=tolerance)
    assert found.perplexity == pytest.approx(math.exp(loss), rel=10 * tolerance)
    assert (found.tokens, found.rows, told) == (tokens, 7, [3, 6, 7])
    assert model.training


def test_every_token_of_a_text_but_the_first_counts_once():
    tokenizer = make_tokenizer()
    ids = tokenizer(TEXT)["input_ids"] + [tokenizer.eos_token_id]
    found = windows([TEXT], tokenizer, 261, 10)
    assert [x for row in found for x in row.ids[1:]] == ids[1:]
    assert all(row.ids == row.labels for row in found)
    assert {len(row.ids) for row in found[:-1]} == {10}


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
    line = r"Test loss (\S+), Test ppl (\S+)\.\n(\S+) tokens of (\S+) rows \((.*)\)\n"
    return re.fullmatch(line, capsys.readouterr().out).groups()


def test_a_text_with_an_adapter(base, text, tmp_path, capsys):
    model = adapt(AutoModelForCausalLM.from_pretrained(base))
    save_adapter(model, tmp_path / "adapter")
    words = ["--adapter-path", str(tmp_path / "adapter"), "--batch-size", "2", "--max-seq-length", "32"]
    assert main(["evaluate", "--model", str(base), "--data", str(text), *words, "--device", "emulator"]) == 0
    rows = windows([TEXT], make_tokenizer(), 261, 32)
    loss, tokens = reference(model, rows, 32)
    found = shown(capsys)
    assert float(found[0]) == pytest.approx(loss, rel=2e-3)
    assert float(found[1]) == pytest.approx(math.exp(loss), rel=1e-2)
    assert found[2:] == (str(tokens), str(len(rows)), "emulated engine, chip m4, numerics fast")


def test_windows_are_no_longer_than_the_model_takes(base, text, capsys):
    assert main(["evaluate", "--model", str(base), "--data", str(text), "--device", "cpu"]) == 0
    assert shown(capsys)[3] == str(len(windows([TEXT], make_tokenizer(), 261, 64)))


def test_nothing_that_counts_is_refused(llama):
    with pytest.raises(UserError, match="no token of the data counts"):
        evaluate(llama(), [Row([5], [5]), Row([5, 6], [5, IGNORED])], 2, 64)


def test_a_loss_that_is_not_finite_is_refused(llama):
    model = llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="the loss is nan in rows 1 to 2"):
        evaluate(model, rows_of([9, 9]), 2, 64)


BAD = {
    "no data": (["--data", "/nowhere.txt"], "there is no data at /nowhere.txt"),
    "batch": (["--batch-size", "0"], "--batch-size is 0; it has to be at least 1"),
    "length": (["--max-seq-length", "1"], "--max-seq-length is 1; it has to be at least 2"),
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


def test_rows_of_json_are_one_sentence(base, tmp_path, capsys):
    (tmp_path / "test.jsonl").write_text('{"text": "a"}\n')
    capsys.readouterr()
    assert main(["evaluate", "--model", str(base), "--data", str(tmp_path / "test.jsonl")]) == 1
    assert "holds rows of JSON; anew evaluate reads plain text" in capsys.readouterr().err


def test_binary_data_is_one_sentence(base, capsys):
    capsys.readouterr()
    assert main(["evaluate", "--model", str(base), "--data", str(base / "model.safetensors")]) == 1
    assert "is binary, not text" in capsys.readouterr().err
