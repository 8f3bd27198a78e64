"""GGUFFile: the header of one GGUF file, and its tensors when they are needed.

    4 bytes     "GGUF", then the version (uint32), the number of tensors and of metadata (uint64)
    metadata    key, type and value of each; texts and arrays begin with their length (uint64)
    directory   name, number of axes, sizes (the row first), type and offset of each tensor
    the rest    the tensors, at offsets from here that are multiples of general.alignment

All is little-endian. Every length is compared with what is left of the file before it is used, so
that a damaged file gives one ValueError. Each tensor is checked when it is used, alone, so that a
damaged tensor, or one of an unknown type, does not prevent reading the others.

The entry of a quantised tensor has the name of the format as its dtype, and reading it gives its
bytes. Blocks of q2_0 have 64 weights, or 128 in files of another program with the same type: the
distance to the next tensor tells. Tests: tests/models/test_gguf_file.py.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .json_text import brief, check_file, shown, unreadable
from .safetensors import Entry, numpy_dtype

MAGIC = b"GGUF"

# Version 1 had lengths of 32 bits, and is no longer written.
VERSIONS = (2, 3)

# The alignment of files that do not name one.
ALIGNMENT = 32

# The limits of ggml: axes of a tensor, and bytes of the name of one.
MOST_AXES = 4

# Arrays of arrays are allowed, but no program writes them. A limit keeps damage from recursing.
MOST_NESTING = 4


class Type(NamedTuple):
    """A type of tensors: its blocks, and the dtype or format that they are read as.

    block   weights in a block
    nbytes  bytes of a block
    dtype   the name of numpy's dtype or of the format; "" for types that are not read
    """

    name: str
    block: int = 1
    nbytes: int = 0
    dtype: str = ""


TYPES = {
    0: Type("F32", 1, 4, "float32"),
    1: Type("F16", 1, 2, "float16"),
    2: Type("Q4_0", 32, 18, "q4_0"),
    3: Type("Q4_1", 32, 20, "q4_1"),
    6: Type("Q5_0"),
    7: Type("Q5_1"),
    8: Type("Q8_0", 32, 34, "q8_0"),
    9: Type("Q8_1"),
    10: Type("Q2_K"),
    11: Type("Q3_K"),
    12: Type("Q4_K", 256, 144, "q4_k"),
    13: Type("Q5_K", 256, 176, "q5_k"),
    14: Type("Q6_K", 256, 210, "q6_k"),
    15: Type("Q8_K"),
    16: Type("IQ2_XXS"),
    17: Type("IQ2_XS"),
    18: Type("IQ3_XXS"),
    19: Type("IQ1_S"),
    20: Type("IQ4_NL"),
    21: Type("IQ3_S"),
    22: Type("IQ2_S"),
    23: Type("IQ4_XS"),
    24: Type("I8"),
    25: Type("I16"),
    26: Type("I32"),
    27: Type("I64"),
    28: Type("F64", 1, 8, "float64"),
    29: Type("IQ1_M"),
    30: Type("BF16", 1, 2, "bfloat16"),
    34: Type("TQ1_0", 256, 54, "tq1_0"),
    35: Type("TQ2_0", 256, 66, "tq2_0"),
    39: Type("MXFP4", 32, 17, "mxfp4"),
    40: Type("NVFP4"),
    41: Type("Q1_0", 128, 18, "q1_0"),
    42: Type("Q2_0", 64, 18, "q2_0"),
}

# The other blocks of the type Q2_0.
Q2_0_WIDE = Type("Q2_0", 128, 34, "q2_0")

READ = tuple(kind.name for kind in TYPES.values() if kind.dtype)

# The types of metadata, by number: the formats of struct. 8 is a text, 9 an array.
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9

_DTYPES = dict(enumerate(("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?")))
_DTYPES |= {10: "<u8", 11: "<i8", 12: "<f8"}


class _Described(NamedTuple):
    """A tensor as the directory describes it, unchecked."""

    sizes: tuple[int, ...]  # as in the file: the row first
    kind: int
    offset: int


class GGUFFile:
    """A GGUF file, which stays open until close().

    metadata  values by key; arrays are numpy arrays, and of arrays of texts only the length is kept

    Raises FileNotFoundError if there is no such file, and ValueError if it is not a GGUF file or
    its header is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        check_file(path)
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                self.size = os.fstat(file.fileno()).st_size
                if self.size < 24:
                    raise self._damaged(f"it has {self.size} bytes; expected at least 24")
                self._map = np.frombuffer(
                    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8
                )
        except OSError as error:
            raise unreadable(path, error) from None
        self._entries: dict[str, Entry] = {}  # those that have been checked
        self._crossing: frozenset[str] | None = None
        self._read_header()

    def close(self) -> None:
        """Let the file go; arrays that view() returned stay valid."""
        self._map = np.empty(0, np.uint8)

    def __iter__(self) -> Iterator[str]:
        return iter(self._described)

    def __contains__(self, name: str) -> bool:
        return name in self._described

    def entry(self, name: str) -> Entry:
        """The Entry of a tensor; ValueError if it cannot be read."""
        found = self._entries.get(name)
        if found is None:
            found = self._checked(name)
            if name in self._overlapping():
                raise self._wrong(name, "shares bytes with another tensor; expected separate ones")
            self._entries[name] = found
        return found

    def view(self, name: str, rows: range | None = None) -> np.ndarray[Any, Any]:
        """A tensor as a view of the mapped file; the bytes of a quantised one, uint8 [n].

        rows  the part of the first dimension; None: all of it
        """
        entry = self.entry(name)
        begin, end, shape = entry.begin, entry.end, entry.shape
        if rows is not None:
            row = (end - begin) // shape[0]
            begin, end = begin + rows.start * row, begin + rows.stop * row
            shape = (len(rows), *shape[1:])
        data = self._map[begin:end]
        if entry.dtype not in ("float64", "float32", "float16", "bfloat16"):
            return data
        dtype = numpy_dtype(entry.dtype)
        data = data if begin % dtype.alignment == 0 else data.copy()
        array: np.ndarray[Any, Any] = data.view(dtype).reshape(shape)
        return array

    def read(self, name: str, rows: range | None = None) -> np.ndarray[Any, Any]:
        """A tensor like view(), in a new array."""
        return np.array(self.view(name, rows))

    # ---- the header

    def _read_header(self) -> None:
        at = _Cursor(self._map, self._damaged)
        if at.bytes(4) != MAGIC:
            raise self._damaged(f"it begins with {self._map[:4].tobytes()!r}; expected {MAGIC!r}")
        version = at.number("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            raise self._damaged(
                "it is big-endian; expected a little-endian file"
                if swapped
                else f"it has version {version}; expected 2 or 3"
            )
        tensors, keys = at.number("Q"), at.number("Q")
        # The least that a tensor and a key take: lengths, types and an empty name.
        at.fits(tensors, 24, "tensors")
        at.fits(keys, 13, "metadata keys")
        self.metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = at.text()
            if key in self.metadata:
                raise self._damaged(f"its header has the key {brief(key)} twice; expected one")
            self.metadata[key] = at.value(at.number("I"))
        self._described: dict[str, _Described] = {}
        for _ in range(tensors):
            name = at.text()
            if name in self._described:
                raise self._damaged(f"its header describes {shown(name)} twice; expected once")
            axes = at.number("I")
            if axes > MOST_AXES:
                raise self._damaged(f"{shown(name)} has {axes} axes; expected at most {MOST_AXES}")
            sizes = tuple(at.number("Q") for _ in range(axes))
            self._described[name] = _Described(sizes, at.number("I"), at.number("Q"))
        told = self.metadata.get("general.alignment", ALIGNMENT)
        # 2^20: more would be a damaged number; ggml's files have 32.
        if type(told) is not int or not 0 < told <= 1 << 20 or told & (told - 1):
            raise self._damaged(f"it has general.alignment {brief(told)}; expected a power of two")
        self._alignment: int = told
        self._data = self._aligned(at.begin)

    def _aligned(self, offset: int) -> int:
        return -(-offset // self._alignment) * self._alignment

    # ---- one tensor

    def _checked(self, name: str) -> Entry:
        if name not in self:
            raise ValueError(f"{self.path} has no tensor {shown(name)}")
        told = self._described[name]
        kind = TYPES.get(told.kind)
        if kind is None or not kind.dtype:
            title = "" if kind is None else f" ({kind.name})"
            raise self._wrong(
                name, f"has type {told.kind}{title}, which is not read; expected {', '.join(READ)}"
            )
        shape = told.sizes[::-1]
        if not shape or 0 in shape:
            raise self._wrong(
                name, f"has shape {shape}; expected at least one dimension, and 1 in each"
            )
        if told.offset % self._alignment:
            raise self._wrong(
                name, f"has the offset {told.offset}; expected a multiple of {self._alignment}"
            )
        if kind.name == "Q2_0":
            kind = self._q2_0(told)
        if shape[-1] % kind.block:
            raise self._wrong(
                name,
                f"has rows of {shape[-1]} weights; expected a multiple of {kind.block} for "
                f"{kind.name}",
            )
        length = math.prod(shape) // kind.block * kind.nbytes
        there = max(0, self.size - self._data)
        if told.offset + length > there:
            raise self._wrong(
                name,
                f"has {length} bytes at offset {told.offset}; expected them within {there} bytes",
            )
        begin = self._data + told.offset
        if name.endswith("ffn_gate_inp_shexp.weight") and len(shape) == 1:
            shape = (1, *shape)  # the only matrix that is written without its dimension of 1
        return Entry(shape, kind.dtype, begin, begin + length)

    def _q2_0(self, told: _Described) -> Type:
        """The blocks of a tensor of type Q2_0. Where a distance fits both, those of 64."""
        later = [d.offset for d in self._described.values() if d.offset > told.offset]
        distance = min(later, default=self.size - self._data) - told.offset
        n = math.prod(told.sizes)
        fits = []
        for kind in (TYPES[42], Q2_0_WIDE):
            length = n // kind.block * kind.nbytes
            whole = told.sizes[0] % kind.block == 0
            if whole and distance in (length, self._aligned(length)):
                fits.append(kind)
        return fits[0] if fits else TYPES[42]

    def _overlapping(self) -> frozenset[str]:
        """The tensors that share bytes with others, among those that can be read otherwise."""
        if self._crossing is None:
            places = []
            for name in self:
                try:
                    entry = self._checked(name)
                except ValueError:
                    continue
                places.append((entry.begin, entry.end, name))
            crossing: set[str] = set()
            furthest, owner = 0, ""
            for begin, end, name in sorted(places):
                if begin < furthest:
                    crossing |= {name, owner}
                if end > furthest:
                    furthest, owner = end, name
            self._crossing = frozenset(crossing)
        return self._crossing

    def _wrong(self, name: str, sentence: str) -> ValueError:
        return ValueError(f"{self.path}: {shown(name)} {sentence}")

    def _damaged(self, sentence: str) -> ValueError:
        return ValueError(f"{self.path} is not a GGUF file, or is damaged: {sentence}")


class _Cursor:
    """Reads one value after the other, and never beyond the end."""

    def __init__(self, data: np.ndarray[Any, Any], damaged: Callable[[str], ValueError]) -> None:
        self._data, self._damaged = data.data, damaged
        self.begin = 0

    def fits(self, count: int, least: int, what: str) -> None:
        """Check that so many things of at least so many bytes can follow."""
        left = len(self._data) - self.begin
        if count * least > left:
            raise self._damaged(
                f"its header would have {count} {what} at byte {self.begin}; {left} bytes are left"
            )

    def bytes(self, length: int) -> bytes:
        self.fits(length, 1, "bytes")
        self.begin += length
        return bytes(self._data[self.begin - length : self.begin])

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.bytes(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        begin = self.begin
        try:
            return self.bytes(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged(f"the text at byte {begin} is not UTF-8") from None

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY or depth > MOST_NESTING:
            raise self._damaged(
                f"the metadata before byte {self.begin} has type {kind}; expected 0 to 12"
            )
        inner, count = self.number("I"), self.number("Q")
        if inner in _SCALARS:
            dtype = np.dtype(_DTYPES[inner])
            self.fits(count, dtype.itemsize, "numbers")
            return np.frombuffer(self.bytes(count * dtype.itemsize), dtype)
        # A text has 8 bytes of length at least, an array 12.
        self.fits(count, 8 if inner == _TEXT else 12, "values")
        for _ in range(count):
            if inner == _TEXT:  # a vocabulary: nothing here needs it
                length = self.number("Q")
                self.fits(length, 1, "bytes")
                self.begin += length
            else:
                self.value(inner, depth + 1)
        return count
