"""The weight blob: the binary file that MIL text points into with ``BLOBFILE(path, offset)``.

The layout is version 2 of the MILBlob storage format of coremltools: a file header, then for each array a record
(sentinel, element type, size, payload offset, unused bits of the last byte) and the payload; header, records and
payloads start on multiples of 64 bytes. An offset in MIL text is that of the record, not of the payload. Elements
narrower than a byte are packed, the first in the lowest bits.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping

import numpy as np

from anew.mil.ops.registry import MilError
from anew.mil.types import ELEMENT_BITS, numpy_dtype

_ALIGNMENT = 64
_VERSION = 2
_SENTINEL = 0xDEADBEEF
_HEADER = struct.Struct("<II56x")  # number of blobs, version
_RECORD = struct.Struct("<IIQQQ32x")  # sentinel, element type, bytes, payload offset, unused bits

#: Codes of the element types in a record (coremltools MILBlob BlobDataType). Other MIL types cannot be stored.
BLOB_CODES: dict[str, int] = {
    "fp16": 1,
    "fp32": 2,
    "uint8": 3,
    "int8": 4,
    "int16": 6,
    "uint16": 7,
    "int4": 8,
    "uint1": 9,
    "uint2": 10,
    "uint4": 11,
    "uint3": 12,
    "uint6": 13,
    "int32": 14,
    "uint32": 15,
}

_BY_CODE = {code: name for name, code in BLOB_CODES.items()}
_BY_DTYPE = {numpy_dtype(name): name for name in BLOB_CODES if ELEMENT_BITS[name] >= 8}

#: What MIL text takes its constants from: one file, or several by the path that the text gives each.
Weights = bytes | Mapping[str, bytes]


class BlobWriter:
    """Collects arrays into a weight blob; an array that was added before is not stored again."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = _HEADER.size
        self._records: dict[tuple[str, int, bytes], int] = {}

    def add(self, array: np.ndarray, element: str = "") -> int:
        """Store an array, row-major, and return the offset of its record: what ``BLOBFILE`` takes.

        ``element`` is the MIL element type, by default the one of the array's dtype. Raises MilError for a type that
        the format lacks.
        """
        element = element or _BY_DTYPE.get(array.dtype, str(array.dtype))
        if element not in BLOB_CODES:
            raise MilError(f"a weight blob cannot hold {element}; it holds {', '.join(BLOB_CODES)}")
        payload = _pack(array, element)
        key = (element, array.size, hashlib.blake2b(payload).digest())
        if key not in self._records:
            self._records[key] = self._append(element, array.size, payload)
        return self._records[key]

    def _append(self, element: str, count: int, payload: bytes) -> int:
        offset = -(-self._size // _ALIGNMENT) * _ALIGNMENT
        start = offset + _RECORD.size
        unused = 8 * len(payload) - count * ELEMENT_BITS[element]
        record = _RECORD.pack(_SENTINEL, BLOB_CODES[element], len(payload), start, unused)
        self._chunks += [bytes(offset - self._size), record, payload]
        self._size = start + len(payload)
        return offset

    def to_bytes(self) -> bytes:
        """Return the file: the last payload is not padded, and no array at all gives the header alone."""
        return b"".join([_HEADER.pack(len(self._records), _VERSION), *self._chunks])


class BlobReader:
    """Reads arrays of a weight blob by the offset of their record.

    Raises MilError when ``data`` is no weight blob. The header's count is not relied on: writers in the field leave it
    at 1.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEADER.size:
            raise MilError(f"a weight blob starts with a header of {_HEADER.size} bytes (got {len(data)} bytes)")
        _, version = _HEADER.unpack_from(data)
        if version != _VERSION:
            raise MilError(f"a weight blob of version {version} is not known to anew, only version {_VERSION}")
        self._data = data

    def read(self, offset: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return a copy of the array whose record is at ``offset``.

        Raises MilError when there is no record, when it has another element type or size, or when its payload leaves
        the file.
        """
        code, size, start = self._record(offset)
        stored = _BY_CODE.get(code, f"code {code}")
        if stored != dtype:
            raise MilError(f"the blob at offset {offset} holds {stored}, not {dtype}")
        count = math.prod(shape)
        expected = -(-count * ELEMENT_BITS[dtype] // 8)
        if size != expected:
            raise MilError(f"the blob at offset {offset} has {size} bytes, but {dtype} {list(shape)} has {expected}")
        if start + size > len(self._data):
            raise MilError(
                f"the payload of the blob at offset {offset} ends at byte {start + size}, "
                f"but the file has {len(self._data)} bytes; is it truncated?"
            )
        return _unpack(self._data[start : start + size], dtype, count).reshape(shape)

    def _record(self, offset: int) -> tuple[int, int, int]:
        if offset % _ALIGNMENT or not _HEADER.size <= offset <= len(self._data) - _RECORD.size:
            raise MilError(
                f"offset {offset} is no blob record: records start on multiples of {_ALIGNMENT} "
                f"within the file's {len(self._data)} bytes, after its header"
            )
        sentinel, code, size, start, _ = _RECORD.unpack_from(self._data, offset)
        if sentinel != _SENTINEL:
            raise MilError(f"offset {offset} is no blob record: it starts with 0x{sentinel:08X}, not 0x{_SENTINEL:X}")
        return code, size, start


def _pack(array: np.ndarray, element: str) -> bytes:
    if ELEMENT_BITS[element] >= 8:
        return array.tobytes()
    return pack_bits(array.ravel().view(np.uint8), ELEMENT_BITS[element]).tobytes()


def _unpack(payload: bytes, element: str, count: int) -> np.ndarray:
    bits = ELEMENT_BITS[element]
    if bits >= 8:
        return np.frombuffer(payload, numpy_dtype(element), count).copy()
    codes = unpack_bits(np.frombuffer(payload, np.uint8), bits, count)
    if element.startswith("u"):
        return codes
    sign = 1 << (bits - 1)
    return ((codes ^ sign).astype(np.int8) - sign).astype(np.int8)


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack the lowest ``bits`` bits of each byte one after another, the first in the lowest bits of the first byte."""
    return np.packbits(np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, :bits], bitorder="little")


def unpack_bits(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the first ``count`` codes of ``bits`` bits that :func:`pack_bits` packed, one in a byte."""
    stream = np.unpackbits(packed, bitorder="little")[: count * bits].reshape(count, bits)
    return np.packbits(stream, axis=1, bitorder="little").ravel()
