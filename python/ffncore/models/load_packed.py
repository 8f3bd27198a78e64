"""fc.load_packed: maps the file of PackedWeights.save into memory.

The weights are not read at once. The system reads pages of the file when kernels use them, and
processes that load the same file share these pages. values/packed_file.py has the format. Tests:
tests/values/test_packed_file.py.
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
    """Load packed weights from a file that PackedWeights.save wrote.

    path  of the file

    Returns PackedWeights whose memory is the mapped file: it is read as kernels need it, and shared
    by all processes that load it. The file must not be changed in place while the weights are used;
    PackedWeights.save replaces it, which is safe.

    Raises FileNotFoundError if the file does not exist, and ValueError if it is no such file, is
    damaged, or has the layout of another version of ffncore.

    >>> fc.pack(weights).save("layer3.packed")
    >>> p = fc.load_packed("layer3.packed")
    >>> y = fc.ffn(x, p, activation="silu")
    """
    file = SafetensorsFile(path)
    try:
        told = file.metadata
        if told.get("format") != FORMAT:
            raise ValueError(
                f"{path} has no packed weights; expected a file written by PackedWeights.save"
            )
        if told.get("layout") != str(LAYOUT):
            raise ValueError(
                f"{path} has the layout {brief(told.get('layout'))}, which this version of ffncore "
                f"does not read; expected layout {LAYOUT}: pack the weights again"
            )
        entry = file.entry(TENSOR)
        if entry.dtype != "uint8" or entry.begin % PAGE or entry.begin == entry.end:
            raise ValueError(
                f"{path} is damaged; expected a file as PackedWeights.save has written it"
            )
        facts = parse_object(str(told.get("weights")).encode(), f"{path}: its entry weights")
    finally:
        file.close()
    buffer = np.memmap(path, np.uint8, "r", entry.begin, entry.shape).view(np.ndarray)
    try:
        facts["sizes"] = tuple(facts["sizes"])
        return PackedWeights._remade(memory=Memory(buffer), **facts)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} has damaged metadata: {error}") from None
