"""SafetensorsFile: the header of one safetensors file, and its tensors when they are needed.

    8 bytes        n, the length of the header, little-endian
    n bytes        JSON: name -> {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}
    the rest       the tensors, C-contiguous and little-endian, at those offsets

The header has to be complete and a JSON object. Each tensor is checked when it is used, alone, so
that a damaged tensor does not prevent reading the others. Tests: tests/models/test_safetensors.py.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .json_text import Repeating, brief, check_file, parse_object, repeats, shown, unreadable

# The limit that the format itself has.
MOST_HEADER_BYTES = 100_000_000

# The bits of an element and the name of numpy's dtype; "" if numpy has none.
DTYPES: dict[str, tuple[int, str]] = {
    "F64": (64, "float64"),
    "F32": (32, "float32"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "I64": (64, "int64"),
    "I32": (32, "int32"),
    "I16": (16, "int16"),
    "I8": (8, "int8"),
    "U64": (64, "uint64"),
    "U32": (32, "uint32"),
    "U16": (16, "uint16"),
    "U8": (8, "uint8"),
    "BOOL": (8, "bool"),
    "C64": (64, "complex64"),
    "F8_E4M3": (8, ""),
    "F8_E4M3FNUZ": (8, ""),
    "F8_E5M2": (8, ""),
    "F8_E5M2FNUZ": (8, ""),
    "F8_E8M0": (8, ""),
    "F6_E2M3": (6, ""),
    "F6_E3M2": (6, ""),
    "F4": (4, ""),
}

# The limit of numpy 1.26. The tensors of layers have at most three axes.
_MOST_AXES = 32


@dataclass(frozen=True)
class Entry:
    """The description of a tensor in the header, checked."""

    shape: tuple[int, ...]
    dtype: str  # the name of numpy's dtype, or that of the format if numpy has none
    begin: int  # offset in the file
    end: int


class SafetensorsFile:
    """A safetensors file, which stays open until close().

    `kind` is what an error message calls such a file. Raises FileNotFoundError if there is no such
    file, and ValueError if it is not a safetensors file.
    """

    def __init__(self, path: str | os.PathLike[str], kind: str = "a safetensors file") -> None:
        self.path, self._kind = Path(path), kind
        check_file(path)
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115, PTH123
        except OSError as error:
            raise unreadable(path, error) from None
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            self._header = self._read_header()
        except BaseException:
            self.close()
            raise
        self._entries: dict[str, Entry] = {}  # those that have been checked
        self._crossing: frozenset[str] | None = None
        self._map: np.ndarray[Any, Any] | None = None  # the bytes of the file, once mapped

    def close(self) -> None:
        """Close the file; arrays that view() returned stay valid."""
        self._file.close()
        self._map = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __contains__(self, name: str) -> bool:
        return name in self._header

    def entry(self, name: str) -> Entry:
        """The Entry of a tensor; ValueError if the header has none that could be read."""
        found = self._entries.get(name)
        if found is None:
            found = self._checked(name)
            if name in self._overlapping():
                raise self._wrong(name, "shares bytes with another tensor; expected separate ones")
            self._entries[name] = found
        return found

    def read(self, name: str, rows: range | None = None) -> np.ndarray[Any, Any]:
        """Read a tensor into a new array. Its dtype has to be one that numpy has.

        rows  the part of the first dimension that is read; None: all of it
        """
        begin, end, shape, dtype = self._place(name, rows)
        return self._bytes(begin, end - begin, name).view(dtype).reshape(shape)

    def view(self, name: str, rows: range | None = None) -> np.ndarray[Any, Any]:
        """Return a tensor as a view of the mapped file, which cannot be written to.

        If its elements are not aligned in the file, it is read into a new array.
        """
        begin, end, shape, dtype = self._place(name, rows)
        if begin % dtype.alignment:
            return self.read(name, rows)
        if self._map is None:
            try:
                mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise unreadable(self.path, error) from None
            self._map = np.frombuffer(mapped, np.uint8)
        if self._map.size < end:
            raise self._cut_off(name)
        return self._map[begin:end].view(dtype).reshape(shape)

    def _place(
        self, name: str, rows: range | None
    ) -> tuple[int, int, tuple[int, ...], np.dtype[Any]]:
        """Where a tensor or its rows begin and end in the file, their shape, and their dtype."""
        entry = self.entry(name)
        begin, end, shape = entry.begin, entry.end, entry.shape
        if 0 in shape:
            raise self._wrong(name, f"has shape {shape}; expected at least 1 in each dimension")
        if rows is not None:
            row = (end - begin) // shape[0]
            begin, end = begin + rows.start * row, begin + rows.stop * row
            shape = (len(rows), *shape[1:])
        return begin, end, shape, numpy_dtype(entry.dtype)

    def _read_header(self) -> dict[str, Any]:
        if self.size < 8:
            raise ValueError(
                f"{self.path} is not {self._kind}: it has {self.size} bytes; expected at least 8"
            )
        length = int.from_bytes(self._bytes(0, 8, "").tobytes(), "little")
        most = min(self.size - 8, MOST_HEADER_BYTES)
        if length > most:
            raise ValueError(
                f"{self.path} is not {self._kind}, or is cut off: its header would have "
                f"{length} bytes; expected at most {most}"
            )
        self._data = 8 + length
        where = f"{self.path} is not {self._kind}: its header"
        header = parse_object(self._bytes(8, length, "").tobytes(), where)
        told = header.pop("__metadata__", None)
        self.metadata: dict[str, Any] = told if isinstance(told, dict) else {}
        return header

    def _bytes(self, begin: int, length: int, name: str) -> np.ndarray[Any, Any]:
        data = np.empty(length, np.uint8)
        view = memoryview(data.data)
        done = 0
        try:
            self._file.seek(begin)
            while done < length:  # one call reads at most 2 GiB
                count = self._file.readinto(view[done:])
                if not count:
                    break
                done += count
        except OSError as error:
            raise unreadable(self.path, error) from None
        if done < length:
            raise self._cut_off(name)
        return data

    def _cut_off(self, name: str) -> ValueError:
        what = shown(name) if name else "its header"
        return ValueError(f"{self.path} was cut off while it was read: {what} ends too early")

    def _checked(self, name: str) -> Entry:
        if name not in self:
            raise ValueError(f"{self.path} has no tensor {shown(name)}")
        if repeats(self._header, name):
            raise self._wrong(name, "is described twice; expected one description")
        described = self._header[name]
        try:
            dtype, shape = described["dtype"], described["shape"]
            begin, end = described["data_offsets"]
            whole = all(_is_whole(n) for n in (*shape, begin, end))
            known = dtype in DTYPES
        except (KeyError, TypeError, ValueError):
            whole, known = False, True
        plain = isinstance(described, dict) and not isinstance(described, Repeating)
        if not (whole and plain and isinstance(shape, list)):
            raise self._wrong(
                name, "is not described; expected a dtype, a shape and two offsets in the header"
            )
        if not known:
            raise self._wrong(
                name, f"has the unknown dtype {brief(dtype)}; expected a dtype of safetensors"
            )
        if len(shape) > _MOST_AXES:
            raise self._wrong(name, f"has {len(shape)} dimensions; expected at most {_MOST_AXES}")
        there = self.size - self._data
        if not begin <= end <= there:
            raise self._wrong(
                name, f"has the offsets {begin} and {end}; expected them within {there} bytes"
            )
        bits, numpy_name = DTYPES[dtype]
        if math.prod(shape) * bits != (end - begin) * 8:
            raise self._wrong(
                name,
                f"has {end - begin} bytes; expected as many as {dtype} of shape {tuple(shape)} has",
            )
        return Entry(tuple(shape), numpy_name or dtype, self._data + begin, self._data + end)

    def _overlapping(self) -> frozenset[str]:
        """The tensors that share bytes with others, among those that are not damaged otherwise."""
        if self._crossing is None:
            self._crossing = frozenset() if self._in_order() else self._sweep()
        return self._crossing

    def _in_order(self) -> bool:
        """Whether each tensor begins where another one ends, which is how files are written."""
        try:
            places = sorted([self._header[name]["data_offsets"] for name in self])
            return all(a[1] == b[0] for a, b in pairwise(places))
        except (KeyError, TypeError, IndexError):
            return False

    def _sweep(self) -> frozenset[str]:
        sound = []
        for name in self:
            try:
                entry = self._checked(name)
            except ValueError:
                continue
            if entry.begin < entry.end:
                sound.append((entry.begin, entry.end, name))
        crossing: set[str] = set()
        furthest, owner = 0, ""  # the largest end of the tensors so far, and its tensor
        for begin, end, name in sorted(sound):
            if begin < furthest:
                crossing |= {name, owner}
            if end > furthest:
                furthest, owner = end, name
        return frozenset(crossing)

    def _wrong(self, name: str, sentence: str) -> ValueError:
        return ValueError(f"{self.path}: {shown(name)} {sentence}")


def _is_whole(value: object) -> bool:
    return type(value) is int and value >= 0


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype in which a tensor is read: bytes for those of 8 bits that numpy does not have."""
    if name in DTYPES and DTYPES[name] == (8, ""):
        return np.dtype(np.uint8)
    if name == "bfloat16":
        try:
            from ml_dtypes import bfloat16
        except ImportError:
            raise ImportError(
                "reading a checkpoint in bfloat16 needs ml_dtypes; pip install ml_dtypes brings it"
            ) from None
        return np.dtype(bfloat16)  # type: ignore[no-any-return]
    return np.dtype(name)
