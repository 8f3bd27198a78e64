"""SafetensorsWriter: writes a safetensors file tensor by tensor.

The header stands before the tensors, but their sizes are known only when they have been made. So
room is left for the longest header that there can be, and what it does not need becomes spaces,
which the format allows at the end of the header. No tensor is kept in memory.
models/files/safetensors.py describes the format.
Tests: tests/models/writing/test_safetensors_file.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from ...arrays.shapes import Array
from ..files.safetensors import DTYPES, Entry

# Room for one tensor in the header beside its name and its sizes: the keys, the longest name of a
# dtype, and two offsets.
_ENTRY = 120
# The digits of the largest size, and what separates it from the next.
_SIZE = 22
# Tensors begin at a multiple of this, so that readers can map them.
_ALIGNMENT = 64
# The bytes that are copied at once.
_COPIED = 2**24

_NAMES = {numpy_name: name for name, (_, numpy_name) in DTYPES.items() if numpy_name}


class SafetensorsWriter:
    """A safetensors file that is being written.

    expected  the number of dimensions of each tensor that may be written, by name
    metadata  texts by name, for `__metadata__`

    The file is complete at the end of a with statement.
    """

    def __init__(
        self, path: Path, expected: Mapping[str, int], metadata: Mapping[str, str]
    ) -> None:
        self._header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        room = len(json.dumps(self._header)) + 2
        room += sum(len(json.dumps(n)) + _ENTRY + _SIZE * axes for n, axes in expected.items())
        self._room = room + (-(room + 8) % _ALIGNMENT)
        self._end = 0  # of the tensors so far
        self._file: IO[bytes] = path.open("wb")
        self._file.write(bytes(8 + self._room))

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                text = json.dumps(self._header, separators=(",", ":")).encode()
                self._file.seek(0)
                self._file.write(self._room.to_bytes(8, "little") + text.ljust(self._room))
        finally:
            self._file.close()

    def write(self, name: str, array: Array) -> None:
        """Append an array."""
        data = np.ascontiguousarray(array).reshape(-1)
        self._describe(name, _NAMES[data.dtype.name], array.shape, data.nbytes)
        self._file.write(data.view(np.uint8).data)

    def copy(self, name: str, path: Path, entry: Entry) -> None:
        """Append a tensor of another file, byte by byte, of whatever dtype."""
        dtype = _NAMES.get(entry.dtype, entry.dtype)
        self._describe(name, dtype, entry.shape, entry.end - entry.begin)
        left = entry.end - entry.begin
        with path.open("rb") as source:
            source.seek(entry.begin)
            while left:
                data = source.read(min(left, _COPIED))
                if not data:
                    raise ValueError(f"{path} was cut off while it was read")
                self._file.write(data)
                left -= len(data)

    def _describe(self, name: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> None:
        begin, self._end = self._end, self._end + nbytes
        self._header[name] = {
            "dtype": dtype,
            "shape": [*shape],
            "data_offsets": [begin, self._end],
        }
