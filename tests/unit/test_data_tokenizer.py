"""Tokenizers: trained, loaded, encoding, and every sentence about a bad one."""

import numpy as np
import pytest

from anew.errors import UserError
from anew.train import tokenizer as tokenizers
from anew.train.tokenizer import encode, load_tokenizer, train_tokenizer

TEXT = "It is a truth universally acknowledged, that a single man\nmust be in want of a wife.\n" * 20


def test_the_same_text_gives_the_same_tokenizer(tmp_path):
    for name in ("a.json", "b.json"):
        train_tokenizer([TEXT], 300, tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_text_survives_encoding_also_in_pieces(tmp_path, monkeypatch):
    tokenizer = train_tokenizer([TEXT], 300, tmp_path / "tokenizer.json")
    monkeypatch.setattr(tokenizers, "PIECE_LENGTH", 100)
    text = TEXT + "naïve café 🙂"
    ids = encode(tokenizer, [text], 300)
    assert ids.dtype == np.uint16
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1].tolist()) == text


def test_a_file_and_a_folder_load_alike(tmp_path):
    trained = train_tokenizer([TEXT], 300, tmp_path / "tokenizer.json")
    trained.save_pretrained(tmp_path / "folder")
    ids = encode(trained, [TEXT], 300)
    assert np.array_equal(encode(load_tokenizer(tmp_path / "folder"), [TEXT], 300), ids)
    # A bare tokenizer.json does not say which piece ends a text; that of train_tokenizer has its known name.
    assert np.array_equal(encode(load_tokenizer(tmp_path / "tokenizer.json"), [TEXT], 300), ids)


def test_large_vocabularies_take_int32(tmp_path):
    tokenizer = train_tokenizer([TEXT], 300, tmp_path / "tokenizer.json")
    assert encode(tokenizer, [TEXT], 100_000).dtype == np.int32


def test_an_id_beyond_the_vocabulary_is_named(tmp_path):
    tokenizer = train_tokenizer([TEXT], 300, tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"gives token id \d+ \('.+'\), and the model's vocabulary has 270"):
        encode(tokenizer, [TEXT], 270)


def test_bad_tokenizers_are_named(tmp_path):
    with pytest.raises(UserError, match="there is no tokenizer at"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match=r"cannot read a tokenizer from .*bad.json"):
        load_tokenizer(tmp_path / "bad.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"cannot read a tokenizer from .*empty"):
        load_tokenizer(tmp_path / "empty")
    with pytest.raises(UserError, match="a vocabulary of 256 is too small"):
        train_tokenizer([TEXT], 256, tmp_path / "tokenizer.json")
