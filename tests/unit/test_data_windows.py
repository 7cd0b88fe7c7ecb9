"""Data: the order of windows, the split, and every sentence about bad input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anew.errors import UserError
from anew.train.data import Windows, read_documents, split, training_part, validation_batches


@given(length=st.integers(18, 600), seq_len=st.integers(1, 16), epoch=st.integers(0, 5), seed=st.integers(0, 99))
def test_an_epoch_visits_windows_that_fit_and_share_no_input(length, seq_len, epoch, seed):
    windows = Windows(np.arange(length, dtype=np.int32), seq_len, seed)
    starts = np.sort(windows.starts(epoch))
    assert len(starts) == windows.per_epoch
    assert starts[0] >= 0
    assert starts[-1] + seq_len + 1 <= length
    assert np.all(np.diff(starts) == seq_len)
    # Fewer than two windows' worth of tokens are left out.
    assert length - windows.per_epoch * seq_len <= 2 * seq_len


@given(seed=st.integers(0, 9), index=st.integers(0, 40))
def test_a_batch_depends_on_nothing_but_seed_and_index(seed, index):
    tokens = np.arange(500, dtype=np.uint16)
    walked = Windows(tokens, 16, seed)
    for before in range(index):
        walked.batch(before, 4)
    for a, b in zip(walked.batch(index, 4), Windows(tokens, 16, seed).batch(index, 4), strict=True):
        assert a.equal(b)


def test_targets_follow_inputs_and_epochs_differ():
    windows = Windows(np.arange(1000, dtype=np.uint16), 10, seed=3)
    inputs, targets = windows.batch(0, 5)
    assert inputs.shape == targets.shape == (5, 10)
    assert targets.equal(inputs + 1)
    assert not np.array_equal(windows.starts(0), windows.starts(1))


@given(length=st.integers(34, 3000))
def test_split_keeps_every_token_and_holds_out_the_last_twentieth(length):
    train, validation = split(np.arange(length), seq_len=16)
    assert np.array_equal(np.concatenate([train, validation]), np.arange(length))
    assert len(validation) == max(17, int(length * 0.05))
    assert len(train) >= 17


def test_validation_counts_each_window_once_and_keeps_the_shape():
    batches = validation_batches(np.arange(111), seq_len=10, batch_size=4, most=8)
    assert [batch.real for batch in batches] == [4, 4, 3]
    assert all(batch.inputs.shape == batch.targets.shape == (4, 10) for batch in batches)
    counted = [int(row[0]) for batch in batches for row in batch.inputs[: batch.real]]
    assert counted == list(range(0, 110, 10))


def test_validation_windows_are_spread_over_all_tokens():
    batches = validation_batches(np.arange(1001), seq_len=10, batch_size=2, most=2)
    assert [int(row[0]) for batch in batches for row in batch.inputs] == [0, 250, 500, 750]


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    (tmp_path / "b.md").write_text("second")
    (tmp_path / "a.txt").write_text("first", encoding="utf-8-sig")
    (tmp_path / "c.bin").write_bytes(b"\0")
    assert read_documents(tmp_path) == ["first", "second"]


def test_training_part_leaves_out_the_last_twentieth():
    assert training_part(["a" * 90, "b" * 10]) == ["a" * 90, "b" * 5]
    assert training_part(["a" * 98, "b" * 2]) == ["a" * 95]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "x.txt is empty"),
        (b" \n", "x.txt is empty"),
        (b"abc\xff", "x.txt is not UTF-8 text: byte 0xff at offset 3"),
        (b"ab\0c", "x.txt is binary, not text: there is a NUL byte at offset 2"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, sentence):
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read_documents(path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*nowhere.txt: No such file"):
        read_documents(tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match=r"there is no .txt or .md file in"):
        read_documents(tmp_path)


def test_too_short_says_how_much_is_needed():
    with pytest.raises(UserError, match=r"it has 33 tokens, and --seq-len 16 needs 34"):
        split(np.arange(33), seq_len=16)
