"""The weight blob: the binary file that MIL text points into with ``BLOBFILE(path, offset)``.

The layout is version 2 of the MILBlob storage format of coremltools: a file header, then for each array a record
(sentinel, element type, size, payload offset) and the payload; header, records and payloads start on multiples of
64 bytes. An offset in MIL text is that of the record, not of the payload.
"""

from __future__ import annotations

import hashlib
import math
import struct

import numpy as np

from anew.mil.ops.registry import MilError
from anew.mil.types import numpy_dtype

_ALIGNMENT = 64
_VERSION = 2
_SENTINEL = 0xDEADBEEF
_HEADER = struct.Struct("<II56x")  # number of blobs, version
_RECORD = struct.Struct("<IIQQ40x")  # sentinel, element type, bytes, payload offset

#: Codes of the element types in a record (coremltools MILBlob BlobDataType). Other MIL types cannot be stored.
BLOB_CODES: dict[str, int] = {"fp16": 1, "fp32": 2, "uint8": 3, "int8": 4, "int16": 6, "uint16": 7, "int32": 14}

_BY_DTYPE = {numpy_dtype(name): (name, code) for name, code in BLOB_CODES.items()}
_BY_CODE = {code: name for name, code in BLOB_CODES.items()}


class BlobWriter:
    """Collects arrays into a weight blob; an array that was added before is not stored again."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = _HEADER.size
        self._records: dict[tuple[int, bytes], int] = {}

    def add(self, array: np.ndarray) -> int:
        """Store an array, row-major, and return the offset of its record: what ``BLOBFILE`` takes.

        Raises MilError for an element type that the format lacks.
        """
        if array.dtype not in _BY_DTYPE:
            raise MilError(f"a weight blob cannot hold {array.dtype}; it holds {', '.join(BLOB_CODES)}")
        code = _BY_DTYPE[array.dtype][1]
        payload = array.tobytes()
        key = (code, hashlib.blake2b(payload).digest())
        if key not in self._records:
            self._records[key] = self._append(code, payload)
        return self._records[key]

    def _append(self, code: int, payload: bytes) -> int:
        offset = -(-self._size // _ALIGNMENT) * _ALIGNMENT
        start = offset + _RECORD.size
        self._chunks += [bytes(offset - self._size), _RECORD.pack(_SENTINEL, code, len(payload), start), payload]
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
        array_dtype = numpy_dtype(dtype)
        count = math.prod(shape)
        if size != count * array_dtype.itemsize:
            expected = count * array_dtype.itemsize
            raise MilError(f"the blob at offset {offset} has {size} bytes, but {dtype} {list(shape)} has {expected}")
        if start + size > len(self._data):
            raise MilError(
                f"the payload of the blob at offset {offset} ends at byte {start + size}, "
                f"but the file has {len(self._data)} bytes; is it truncated?"
            )
        return np.frombuffer(self._data, array_dtype, count, start).reshape(shape).copy()

    def _record(self, offset: int) -> tuple[int, int, int]:
        if offset % _ALIGNMENT or not _HEADER.size <= offset <= len(self._data) - _RECORD.size:
            raise MilError(
                f"offset {offset} is no blob record: records start on multiples of {_ALIGNMENT} "
                f"within the file's {len(self._data)} bytes, after its header"
            )
        sentinel, code, size, start = _RECORD.unpack_from(self._data, offset)
        if sentinel != _SENTINEL:
            raise MilError(f"offset {offset} is no blob record: it starts with 0x{sentinel:08X}, not 0x{_SENTINEL:X}")
        return code, size, start
