"""Packed weights in a file: one safetensors file of one tensor of bytes.

    "packed"      uint8 [n], the kernels' layout, at a multiple of 4096 bytes in the file
    __metadata__  what the bytes are: layout, sizes, biases, dtype

The layout is the same for every instruction set. A file of another layout number is refused when it
is read, and has to be packed again. The place in the file lets it be mapped into memory with the
alignment that kernels want. Reading:
models/load_packed.py. Tests: tests/values/test_packed_file.py.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ..arrays.shapes import Array

# Counts up whenever the bytes of the same weights change.
LAYOUT = 1
FORMAT = "ffncore packed weights"
TENSOR = "packed"
# A page: what mmap wants of an offset, and a multiple of a cache line.
PAGE = 4096


def write(path: str | os.PathLike[str], buffer: Array, facts: dict[str, Any]) -> None:
    """The file, whole or not at all: one that is mapped elsewhere keeps its bytes."""
    n = int(buffer.nbytes)
    metadata = {"format": FORMAT, "layout": str(LAYOUT), "weights": json.dumps(facts)}
    described = {"dtype": "U8", "shape": [n], "data_offsets": [0, n]}
    header = json.dumps({"__metadata__": metadata, TENSOR: described}).encode("ascii")
    header += b" " * (-(8 + len(header)) % PAGE)
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.write(buffer.data)
        part.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
