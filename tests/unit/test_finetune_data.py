"""Data of `anew finetune`: each form as mlx_lm reads it, masks, bad rows by their place, batches, packing, preview."""

import json
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi
from mlx_lm.tuner.datasets import create_dataset

from anew.errors import UserError
from anew.finetune.batches import IGNORED, Batches, bucket
from anew.finetune.examples import Encoder, Example, fit, stop_tokens
from anew.finetune.hub import read_hub
from anew.finetune.options import FinetuneConfig
from anew.finetune.preview import preview, stop_warning
from anew.finetune.rows import Names, read_rows
from tests.pretrained import make_tokenizer

USER, HELPER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
NO_CONTENT = {"role": "assistant"}
MORE = [USER, HELPER, {"role": "user", "content": "and?"}, {"role": "assistant", "content": "the end"}]
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
ROWS = {
    "completion": {"prompt": "what is it", "completion": "the thing"},
    "chat": {"messages": MORE, "extra": 1},
    "tools": {"messages": [USER, HELPER], "tools": TOOLS},
    "text": {"text": "the text"},
}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def write(folder, rows, split="train"):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return FinetuneConfig(data=str(folder), train=True)


def examples_of(folder, tokenizer, rows, **masks):
    return Encoder(tokenizer, **masks).encode(read_rows(write(folder, rows), ["train"])["train"])


def counted_text(tokenizer, example):
    return tokenizer.decode([i for i, counted in zip(example.ids, example.counted, strict=True) if counted])


@pytest.mark.parametrize(
    ("form", "mask"), [(form, mask) for form in ROWS for mask in (False, True) if not (form == "text" and mask)]
)
def test_tokens_and_masks_are_those_of_mlx_lm(tmp_path, tokenizer, form, mask):
    (found,) = examples_of(tmp_path, tokenizer, [ROWS[form]], mask_prompt=mask)
    data = create_dataset([ROWS[form]], tokenizer, SimpleNamespace(mask_prompt=mask))
    ids, offset = data.process(data[0])
    assert found.ids == ids
    assert found.counted == [i >= max(offset, 1) for i in range(len(ids))]


def test_the_assistants_messages_alone_are_counted(tmp_path, tokenizer):
    (found,) = examples_of(tmp_path, tokenizer, [ROWS["chat"]], assistant_only=True)
    assert counted_text(tokenizer, found) == "hello<end>the end<end>"


def test_generation_tags_of_a_template_say_what_the_assistant_says(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] }}<end>{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    (found,) = examples_of(tmp_path, tokenizer, [ROWS["chat"]], assistant_only=True)
    assert counted_text(tokenizer, found) == "hello<end>the end<end>"


def test_a_template_that_rewrites_what_went_before_cannot_be_masked(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    with pytest.raises(UserError, match=r"train\.jsonl:1: the chat template writes earlier messages another way"):
        examples_of(tmp_path, tokenizer, [ROWS["chat"]], assistant_only=True)


def test_completions_may_be_messages_or_do_without_a_template(tmp_path):
    tokenizer = make_tokenizer()
    rows = [{"prompt": [USER], "completion": [HELPER]}]
    (found,) = examples_of(tmp_path, tokenizer, rows, mask_prompt=True)
    assert counted_text(tokenizer, found) == "hello<end>"
    tokenizer.chat_template = None
    (found,) = examples_of(tmp_path, tokenizer, [ROWS["completion"]], mask_prompt=True)
    assert tokenizer.decode(found.ids) == "what is itthe thing<end>"
    assert counted_text(tokenizer, found) == "the thing<end>"
    with pytest.raises(UserError, match=r"train\.jsonl:1: the model's tokenizer has no chat template"):
        examples_of(tmp_path, tokenizer, [ROWS["chat"]])


def test_columns_may_have_other_names(tmp_path):
    write(tmp_path, [{"question": "a", "answer": "b"}])
    config = FinetuneConfig(data=str(tmp_path), prompt_feature="question", completion_feature="answer")
    (row,) = read_rows(config, ["train"])["train"]
    assert row.content == {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"text": "a"', "not valid JSON: Expecting ',' delimiter at column 13"),
        ("[1]", "a row must be a JSON object, not a list"),
        ({"words": "a"}, "its keys are 'words'; a row needs 'prompt' and 'completion', 'messages', or 'text'"),
        ({"text": 3}, "'text' must be text, not a number"),
        ({"text": ""}, "'text' is empty"),
        ({"prompt": "a", "completion": None}, "'completion' must be text, not null"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": "a"}, "'messages' must be a list of messages, not text"),
        ({"messages": [{"content": "a"}]}, "message 1 of 'messages' needs a 'role', such as 'user'"),
        (
            {"messages": [USER, {"role": "assistant"}]},
            "message 2 of 'messages' needs a 'content' that is text, not null",
        ),
        ({"messages": [USER], "tools": "a"}, "'tools' must be a list of JSON objects, not text"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, said):
    config = write(tmp_path, [ROWS["text"], "", row])
    with pytest.raises(UserError) as refused:
        read_rows(config, ["train"])
    assert str(refused.value) == f"{tmp_path}/train.jsonl:3: {said}"


def test_many_bad_rows_are_counted_and_bad_bytes_are_named(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b'{"text": "\xff"}\n' + b"{}\n" * 7)
    with pytest.raises(UserError) as refused:
        read_rows(FinetuneConfig(data=str(tmp_path)), ["train"])
    said = str(refused.value)
    assert said.startswith(f"{tmp_path}/train.jsonl:1: not UTF-8 at byte 11 of the line; {tmp_path}/train.jsonl:2: ")
    assert said.endswith("; and 3 more bad rows")


def test_text_has_no_prompt_to_mask(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"train\.jsonl:1: --mask-prompt has no meaning for a row of 'text'"):
        examples_of(tmp_path, tokenizer, [ROWS["text"]], mask_prompt=True)
    with pytest.raises(UserError, match=r"train\.jsonl:1: --assistant-only-loss: no message is the assistant's"):
        examples_of(tmp_path, tokenizer, [{"messages": [USER]}], assistant_only=True)


def test_places_without_data_are_named(tmp_path):
    with pytest.raises(UserError, match=r"holds none of train\.jsonl, valid\.jsonl"):
        read_rows(FinetuneConfig(data=str(tmp_path)), ["train", "valid"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"is a file: give the folder with train\.jsonl"):
        read_rows(FinetuneConfig(data=f"{tmp_path}/file"), ["train"])


def example(length, first=1, token=7):
    return Example([token + i for i in range(length)], [i >= max(first, 1) for i in range(length)])


def test_long_rows_are_cut_and_counted():
    kept, said = fit([example(10), example(40), example(50, first=45)], 32, "train")
    assert [len(e.ids) for e in kept] == [10, 32]
    assert said == [
        "[WARNING] 2 of 3 rows of train are longer than 32 tokens, the longest has 50: they are cut (--max-seq-length)",
        "[WARNING] 1 of 3 rows of train are left out: no token of them is in the loss",
    ]
    assert fit([example(10)], 32, "train")[1] == []
    with pytest.raises(UserError, match="no row of train has a token for the loss"):
        fit([example(50, first=45)], 32, "train")


def test_batches_have_few_lengths_and_keep_every_row():
    lengths = [5, 9, 33, 40, 70, 100, 101]
    batches = Batches([example(n) for n in lengths], 2, 120)
    assert batches.lengths() == [32, 64, 120]
    assert [bucket(n, 120) for n in (1, 32, 33, 65, 119, 120)] == [32, 32, 64, 120, 120, 120]
    found = [batches.at(step, seed=3) for step in range(len(batches))]
    assert all(batch.arguments["input_ids"].shape[0] == 2 for batch in found)
    assert sum(batch.tokens for batch in found) == sum(n - 1 for n in lengths)
    labels = torch.cat([batch.arguments["labels"].flatten() for batch in found])
    assert int((labels != IGNORED).sum()) == sum(n - 1 for n in lengths)


def test_the_order_of_batches_depends_on_seed_and_epoch_alone():
    def order(batches, seed, steps):
        return [int(batches.at(step, seed).arguments["input_ids"][0, 0]) for step in steps]

    data = [example(4 + n, token=10 * n) for n in range(6)]
    first, second = Batches(data, 1, 32), Batches(data, 1, 32)
    whole = order(first, 1, range(18))
    assert order(second, 1, range(7, 18)) == whole[7:]
    assert sorted(whole[:6]) == sorted(whole[6:12]) == [0, 10, 20, 30, 40, 50]
    assert whole[:6] != whole[6:12] or whole[6:12] != whole[12:]
    assert order(first, 2, range(18)) != whole
    assert [int(b.arguments["input_ids"][0, 0]) for b in first.spread(3)] == [0, 20, 40]
    assert len(list(first.spread(-1))) == 6


def test_packed_rows_do_not_see_each_other(llama):
    model = llama(vocab_size=300).eval()
    data = [example(n, token=3 * n) for n in (5, 9, 12, 17, 30)]
    apart = {}
    for one in data:
        ids = torch.tensor([one.ids])
        apart[len(one.ids)] = model(input_ids=ids, labels=ids).loss.item() * (len(one.ids) - 1)
    packed = Batches(data, 2, 40, packing=True)
    assert len(packed) == 1
    (batch,) = packed.spread(-1)
    assert batch.arguments["input_ids"].shape == (2, 40)
    assert batch.tokens == sum(len(one.ids) - 1 for one in data)
    loss = model(**batch.arguments).loss.item() * batch.tokens
    assert loss == pytest.approx(sum(apart.values()), rel=1e-5)


def test_the_preview_shows_what_the_loss_does_not_count(tmp_path, tokenizer):
    (found,) = examples_of(tmp_path, tokenizer, [ROWS["completion"]], mask_prompt=True)
    shown = preview(found, tokenizer)
    assert shown.plain.endswith("\n⟦<user>what is it<end><assistant>⟧the thing<end>")
    assert any(span.style == "dim" for span in shown.spans)


def test_a_missing_stop_token_is_a_warning(llama, tokenizer):
    model = llama(eos_token_id=[0, 5])
    assert stop_tokens(model, tokenizer) == {0, 5}
    with_stop, without = Example([7, 8, 0], [False, True, True]), Example([7, 0, 8], [False, False, True])
    assert stop_warning([with_stop], {0}, tokenizer) is None
    assert "no row has a stop token (<end>) in the loss" in stop_warning([without], {0}, tokenizer)
    assert "1 of 2 rows do not have a stop token" in stop_warning([with_stop, without], {0}, tokenizer)


def test_a_data_set_of_the_hub_needs_its_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"there is no folder who/what; .* pip install 'anew\[hub\]'"):
        read_rows(FinetuneConfig(data="who/what"), ["train"])


def test_a_data_set_the_hub_does_not_answer_for_is_refused_before_datasets_asks(monkeypatch):
    datasets = pytest.importorskip("datasets", reason="needs the extra hub")

    def unreachable(self, name, timeout):
        raise ConnectionError(f"no answer for {name} in {timeout} s")

    monkeypatch.setattr(HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("it waits for half a minute"))
    with pytest.raises(UserError, match="the Hugging Face hub gives no such data set: no answer for who/what in 10 s"):
        read_rows(FinetuneConfig(data="who/what"), ["train"])


class TestWhatDatasetsLoads:
    """Parquet files in a folder: read by `datasets` as a data set of the hub is, and no network is needed."""

    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        datasets = pytest.importorskip("datasets", reason="needs the extra hub")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        rows = [{"q": f"q {n}", "a": f"a {n}", "text": f"text {n}"} for n in range(10)]
        data = datasets.Dataset.from_list(rows)
        (tmp_path / "set").mkdir()
        data.to_parquet(tmp_path / "set" / "train.parquet")
        data.select([4]).to_parquet(tmp_path / "set" / "validation.parquet")
        return tmp_path / "set"

    def test_entries_have_splits_and_columns(self, folder):
        columns = {"prompt_feature": "q", "completion_feature": "a"}
        entry = {"path": str(folder), "train_split": "train[:30%]", "test_split": "validation"}
        found = read_rows(
            FinetuneConfig(hf_dataset=[entry | columns, {"path": str(folder)}]), ["train", "valid", "test"]
        )
        assert [len(found[split]) for split in ("train", "valid", "test")] == [3 + 8, 1 + 1, 1]
        assert found["train"][2].content == {"prompt": "q 2", "completion": "a 2"}
        assert found["train"][2].place == f"{folder}[train[:30%]]:3"
        assert [row.content for row in found["valid"]] == [{"prompt": "q 9", "completion": "a 9"}, {"text": "text 9"}]
        assert found["test"][0].content["prompt"] == "q 4"

    def test_a_data_set_by_its_name_has_the_splits_that_it_names(self, folder):
        found = read_hub(FinetuneConfig(data=str(folder)), Names(), ("train", "valid", "test"))
        assert [len(found[split]) for split in ("train", "valid", "test")] == [10, 1, 0]

    @pytest.mark.parametrize(
        ("entry", "said"),
        [
            ({"train_split": "tain"}, 'datasets cannot load .*set: Unknown split "tain"'),
            (
                {"prompt_feature": "qq", "completion_feature": "a", "text_feature": "t"},
                r"train\[:80%\]\]:1: its keys are",
            ),
            ({"split": "train"}, "hf_dataset: 'split' is unknown: did you mean 'test_split'"),
        ],
        ids=["split", "columns", "key"],
    )
    def test_what_cannot_be_read_is_named(self, folder, entry, said):
        with pytest.raises(UserError, match=said):
            read_rows(FinetuneConfig(hf_dataset={"path": str(folder)} | entry), ["train"])
