"""Writes a GGUF file: texts and numbers by name, then tensors by name.

    "GGUF", version 3, the number of tensors, the number of entries
    entries    name, type, value
    directory  of each tensor: name, number of dimensions, sizes (the last axis first), type, offset
    tensors    each at a multiple of 32 bytes, from the end of the directory

Numbers are little-endian; texts begin with their length in 8 bytes. The sizes of all tensors are
known before, so that one after the other can be made and written.
Tests: tests/models/writing/test_gguf_written_file.py, tests/conformance/test_gguf_written.py.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ALIGNMENT = 32
VERSION = 3

# The numbers of types of tensors.
TENSOR_TYPES = {
    "float32": 0,
    "float16": 1,
    "float64": 28,
    "bfloat16": 30,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 8,
    "q4_k": 12,
    "q5_k": 13,
    "q6_k": 14,
    "tq1_0": 34,
    "tq2_0": 35,
    "mxfp4": 39,
    "q1_0": 41,
    "q2_0": 42,
}

# The numbers of types of entries.
_UINT32, _FLOAT32, _BOOL, _STRING = 4, 6, 7, 8


class Tensor(NamedTuple):
    """A tensor to write.

    shape   as of an array: the axis whose elements are neighbours is the last one
    type    a key of TENSOR_TYPES
    nbytes  the number of bytes
    data    makes the bytes, in pieces
    """

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    data: Callable[[], Iterable[bytes]]


def write_gguf(
    path: Path,
    entries: Mapping[str, Any],
    tensors: Sequence[Tensor],
    order: Iterable[Tensor] | None = None,
) -> None:
    """Write a file.

    entries  texts, booleans, whole numbers below 2^32 and other numbers, by name
    order    the tensors once more, from an iterator that shows progress
    """
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", VERSION, len(tensors), len(entries)))
        for key, value in entries.items():
            file.write(_text(key) + _entry(value))
        offset = 0
        for tensor in tensors:
            sizes = tensor.shape[::-1]
            file.write(_text(tensor.name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
            file.write(struct.pack("<IQ", TENSOR_TYPES[tensor.type], offset))
            offset += _aligned(tensor.nbytes)
        file.write(bytes(_aligned(file.tell()) - file.tell()))
        for tensor in tensors if order is None else order:
            start = file.tell()
            for piece in tensor.data():
                file.write(piece)
            count = file.tell() - start
            assert count == tensor.nbytes, f"{tensor.name}: {count} bytes of {tensor.nbytes}"
            file.write(bytes(_aligned(count) - count))


def _aligned(count: int) -> int:
    return math.ceil(count / ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _entry(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    return struct.pack("<I", _STRING) + _text(str(value))
