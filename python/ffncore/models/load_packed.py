"""fc.load_packed: weights that PackedWeights.save wrote, mapped into memory.

Nothing is read beforehand: pages come from the file as kernels touch them, and processes that map
the same file share them. Tests: tests/values/test_packed_file.py.
"""

from __future__ import annotations

import os

import numpy as np

from ..arrays.memory import Memory
from ..values.packed import PackedWeights
from ..values.packed_file import FORMAT, LAYOUT, PAGE, TENSOR
from .files.json_text import brief, parse_object
from .files.safetensors import SafetensorsFile


def load_packed(path: str | os.PathLike[str]) -> PackedWeights:
    """The packed weights of a file that `packed.save(path)` wrote.

    The file is mapped into memory: it must not be changed while the weights are used. (save writes
    a new file in its place, which does no harm.) FileNotFoundError where there is none, ValueError
    for what is no such file, or one of another layout.

    >>> fc.pack(w).save("layer3.packed")
    >>> p = fc.load_packed("layer3.packed")
    >>> y = fc.ffn(x, p, activation="silu")
    """
    file = SafetensorsFile(path)
    try:
        told = file.metadata
        if told.get("format") != FORMAT:
            raise ValueError(
                f"{path} holds no packed weights; expected a file of PackedWeights.save"
            )
        if told.get("layout") != str(LAYOUT):
            raise ValueError(
                f"{path} has the layout {brief(told.get('layout'))}, which this version of ffncore "
                f"does not read; expected layout {LAYOUT}: pack the weights again"
            )
        entry = file.entry(TENSOR)
        if entry.dtype != "uint8" or entry.begin % PAGE or entry.begin == entry.end:
            raise ValueError(f"{path} was not written by PackedWeights.save; expected its bytes")
        facts = parse_object(str(told.get("weights")).encode(), f"{path}: what it says of weights")
    finally:
        file.close()
    buffer = np.memmap(path, np.uint8, "r", entry.begin, entry.shape).view(np.ndarray)
    try:
        facts["sizes"] = tuple(facts["sizes"])
        return PackedWeights._remade(memory=Memory(buffer), **facts)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} describes no packed weights: {error}") from None
