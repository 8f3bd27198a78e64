"""The file format of packed weights: a safetensors file with one tensor of bytes.

    "packed"      uint8 [n], the bytes of PackedWeights, at a multiple of 4096 bytes in the file
    __metadata__  what the bytes mean: number of the layout, sizes, biases, dtype

The tensor starts at a multiple of the page size, so that the file can be mapped into memory with
the alignment that kernels want. The layout is the same for every instruction set. Its number
changes when the layout does: a file with another number is refused, and the weights have to be
packed again.

This module writes the file, models/load_packed.py reads it. Tests:
tests/values/test_packed_file.py.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ..arrays.shapes import Array

# To be raised whenever the same weights pack to other bytes.
LAYOUT = 1
FORMAT = "ffncore packed weights"
TENSOR = "packed"
# mmap needs offsets that are multiples of a page, which is also a multiple of a cache line.
PAGE = 4096


def write(path: str | os.PathLike[str], buffer: Array, facts: dict[str, Any]) -> None:
    """Write the file, wholly or not at all.

    It is written under another name in the same folder, and then renamed. So a process that has
    mapped the old file keeps the old bytes.
    """
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
