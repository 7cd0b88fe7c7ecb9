"""The weight blob, against coremltools' own writer and reader of the format."""

import contextlib
import struct

import numpy as np
import pytest
from coremltools.libmilstoragepython import _BlobStorageReader, _BlobStorageWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from anew.mil import BlobReader, BlobWriter, MilError
from anew.mil.blob import BLOB_CODES
from anew.mil.types import ELEMENT_BITS, numpy_dtype

#: coremltools' name of an element type; it takes fp16 as the bit patterns.
THEIRS = {dtype: {"fp16": "fp16", "fp32": "float"}.get(dtype, dtype) for dtype in BLOB_CODES}


def write_theirs(path, arrays):
    writer = _BlobStorageWriter(str(path))
    offsets = []
    for dtype, array in arrays:
        flat = array.ravel().view(np.uint16) if dtype == "fp16" else array.ravel()
        offsets.append(getattr(writer, f"write_{THEIRS[dtype]}_data")(flat))
    del writer  # closes the file
    return offsets, path.read_bytes()


def write_ours(arrays):
    writer = BlobWriter()
    return [writer.add(array, dtype) for dtype, array in arrays], writer.to_bytes()


def sample(dtype, *shape):
    rng = np.random.default_rng(len(dtype) + sum(shape))
    return dtype, fitting(rng.integers(0, 100, shape), dtype)


def fitting(numbers, dtype):
    """The numbers as the type holds them; of one narrower than a byte only as many bits as it has."""
    bits = ELEMENT_BITS[dtype]
    if bits < 8:
        numbers = numbers % 2**bits - (2 ** (bits - 1) if dtype == "int4" else 0)
    return numbers.astype(numpy_dtype(dtype))


SETS = {
    **{dtype: [sample(dtype, 3, 5)] for dtype in BLOB_CODES},
    "all": [sample(dtype, 2, n + 1) for n, dtype in enumerate(BLOB_CODES)],
    "aligned": [sample("fp16", 32), sample("int8", 64), sample("fp32", 7, 16)],
    "none": [],
}


@pytest.mark.parametrize("arrays", SETS.values(), ids=SETS)
def test_same_bytes_as_coremltools(tmp_path, arrays):
    assert write_ours(arrays) == write_theirs(tmp_path / "theirs.bin", arrays)


@pytest.mark.parametrize("arrays", SETS.values(), ids=SETS)
def test_coremltools_reads_ours(tmp_path, arrays):
    offsets, data = write_ours(arrays)
    path = tmp_path / "ours.bin"
    path.write_bytes(data)
    reader = _BlobStorageReader(str(path))
    for offset, (dtype, array) in zip(offsets, arrays, strict=True):
        read = np.asarray(getattr(reader, f"read_{THEIRS[dtype]}_data")(offset))
        assert read.tobytes() == array.tobytes()


def any_bits(dtype, data):
    if ELEMENT_BITS[dtype] < 8:
        return fitting(np.frombuffer(data, np.uint8).astype(int), dtype)
    return np.frombuffer(data[: len(data) // 4 * 4], numpy_dtype(dtype))


_bits = st.tuples(st.sampled_from(sorted(BLOB_CODES)), st.binary(min_size=8, max_size=200)).map(
    lambda t: (t[0], any_bits(*t))
)


@settings(max_examples=60, deadline=None)
@given(arrays=st.lists(_bits, max_size=6, unique_by=lambda t: (t[0], t[1].tobytes())))
def test_any_arrays(tmp_path_factory, arrays):
    offsets, data = write_ours(arrays)
    assert (offsets, data) == write_theirs(tmp_path_factory.mktemp("blob") / "theirs.bin", arrays)
    reader = BlobReader(data)
    for offset, (dtype, array) in zip(offsets, arrays, strict=True):
        assert reader.read(offset, dtype, array.shape).tobytes() == array.tobytes()


def test_reads_what_coremltools_wrote(tmp_path):
    arrays = SETS["all"]
    offsets, data = write_theirs(tmp_path / "theirs.bin", arrays)
    for offset, (dtype, array) in zip(offsets, arrays, strict=True):
        read = BlobReader(data).read(offset, dtype, array.shape)
        np.testing.assert_array_equal(read, array)
        assert read.dtype == array.dtype
        assert read.flags.writeable


def test_equal_arrays_are_stored_once():
    writer = BlobWriter()
    a = np.arange(6, dtype=np.float16)
    first = writer.add(a)
    assert writer.add(a.copy().reshape(2, 3)) == first
    assert writer.add(a.view(np.int16)) != first
    assert struct.unpack_from("<I", writer.to_bytes()) == (2,)


def test_the_writer_copies():
    writer, a = BlobWriter(), np.zeros(4, np.float16)
    offset = writer.add(a)
    a[:] = 1
    assert not BlobReader(writer.to_bytes()).read(offset, "fp16", (4,)).any()


def test_a_transposed_array_is_stored_row_major():
    writer, a = BlobWriter(), np.arange(6, dtype=np.float16).reshape(2, 3).T
    offset = writer.add(a)
    np.testing.assert_array_equal(BlobReader(writer.to_bytes()).read(offset, "fp16", (3, 2)), a)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.bool_])
def test_the_writer_refuses_other_types(dtype):
    with pytest.raises(MilError, match="cannot hold"):
        BlobWriter().add(np.zeros(3, dtype))


def patched(at, form, value):
    data = bytearray(write_ours([("fp16", np.arange(4, dtype=np.float16))])[1])
    struct.pack_into(form, data, at, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "read", "message"),
    [
        (b"", (64, "fp16", (4,)), "header of 64 bytes"),
        (patched(4, "<I", 1), (64, "fp16", (4,)), "version 1"),
        (patched(64, "<I", 7), (64, "fp16", (4,)), "0x00000007, not 0xDEADBEEF"),
        (patched(68, "<I", 3), (64, "fp16", (4,)), "holds uint8, not fp16"),
        (patched(68, "<I", 99), (64, "fp16", (4,)), "holds code 99, not fp16"),
        (patched(72, "<Q", 6), (64, "fp16", (4,)), "has 6 bytes"),
        (patched(80, "<Q", 130), (64, "fp16", (4,)), "truncated"),
        (patched(0, "<I", 1)[:-1], (64, "fp16", (4,)), "truncated"),
        (patched(0, "<I", 1), (64, "fp16", (5,)), "has 8 bytes, but fp16 \\[5\\] has 10"),
        (patched(0, "<I", 1), (64, "int8", (8,)), "holds fp16, not int8"),
        (patched(0, "<I", 1), (65, "fp16", (4,)), "offset 65"),
        (patched(0, "<I", 1), (0, "fp16", (4,)), "offset 0"),
        (patched(0, "<I", 1), (128, "fp16", (4,)), "offset 128"),
        (patched(0, "<I", 1), (1 << 62, "fp16", (4,)), "is no blob record"),
    ],
)
def test_bad_files_and_offsets(data, read, message):
    with pytest.raises(MilError, match=message):
        BlobReader(data).read(*read)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_corrupted_byte_is_an_error_or_reads(data):
    """No corruption of the header or the record ends in another exception."""
    blob = bytearray(write_ours([("fp16", np.arange(40, dtype=np.float16))])[1])
    blob[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(blob)))
    with contextlib.suppress(MilError):
        BlobReader(bytes(blob[:cut])).read(64, "fp16", (40,))
