"""The tensors of one layer: taken by name with the sizes they should have, headers alone.

    tensors.take("mlp.up_proj.weight", "f d")       sets f and d
    tensors.take("mlp.down_proj.weight", "d f")     has to agree

A tensor of the layer's block that nothing takes would be missing from the computation, so it is an
error.
Tests: tests/models/test_models.py, tests/models/test_models_moe.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..arrays.dtypes import SUPPORTED
from .files.checkpoint import Checkpoint
from .files.json_text import shown
from .files.packing import FLOATS
from .files.safetensors import Entry

_SIZE = re.compile(r"(\d*)([A-Za-z]?)")


class LayerTensors:
    """Names are without what all names of the layer start with."""

    def __init__(self, checkpoint: Checkpoint, start: str, names: Iterable[str]) -> None:
        self.checkpoint = checkpoint
        self.start = start
        self.names = frozenset(names)
        self.sizes: dict[str, int] = {}  # E, f, d, ...
        self.taken: dict[str, str] = {}  # name -> dtype

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def have(self, starts: tuple[str, ...]) -> bool:
        """Whether a name starts so."""
        return any(name.startswith(starts) for name in self.names)

    def take(self, name: str, axes: str) -> None:
        """Checks that the tensor is there, sound, of a dtype that is computed with, and its sizes.

        axes  letters, which stand for one size each, numbers, and both: "2f"
        """
        full = self.start + name
        if name not in self.names:
            raise ValueError(
                f"{self.checkpoint.names_file} has no tensor {shown(full)}; expected one"
            )
        entry = self.checkpoint.entry(full)
        if entry.dtype not in FLOATS:
            raise self.wrong(name, f"has dtype {entry.dtype}; expected {SUPPORTED}")
        expected: list[Any] = [_SIZE.fullmatch(axis) for axis in axes.split()]
        fits = len(expected) == len(entry.shape) and all(
            self._fits(size, int(match[1] or 1), match[2])
            for size, match in zip(entry.shape, expected, strict=True)
        )
        if not fits:
            told = ", ".join(f"{letter} = {size}" for letter, size in self.sizes.items())
            told = f" with {told}" if told else ""
            meaning = f"[{', '.join(axes.split())}]"
            raise self.wrong(name, f"has shape {entry.shape}; expected {meaning}{told}")
        self.taken[name] = entry.dtype

    def _fits(self, size: int, times: int, letter: str) -> bool:
        if not letter:
            return size == times
        if letter not in self.sizes:
            if size == 0 or size % times:
                return False
            self.sizes[letter] = size // times
        return size == times * self.sizes[letter]

    def left_over(self, starts: tuple[str, ...]) -> None:
        """Raises where the layer has a tensor of a name that starts so, and nothing takes it."""
        rest = [n for n in self.names if n.startswith(starts) and n not in self.taken]
        if rest:
            raise self.wrong(
                min(rest), "is no part of such a layer as it is computed here; expected no such one"
            )

    def same_dtype(self, names: Iterable[str], beside: tuple[str, ...] = ()) -> None:
        """One dtype for `names`; `beside` may be float32 beside 16 bits."""
        names = list(names)
        for name in (*names, *beside):
            first, found = self.taken[names[0]], self.taken[name]
            narrow = first in ("float16", "bfloat16") and found == "float32"
            if found != first and not (narrow and name in beside):
                raise self._mixed(name, names[0])

    def same_precision(self, name: str, other: str, *, widened: bool) -> None:
        """float64 beside float64 alone, unless the tensor is `widened` where it has to be."""
        wide, expected = (self.taken[n] == "float64" for n in (name, other))
        if wide != expected and not (widened and expected):
            raise self._mixed(name, other)

    def _mixed(self, name: str, other: str) -> ValueError:
        return self.wrong(
            name,
            f"has dtype {self.taken[name]} and {shown(other)} has {self.taken[other]}; expected "
            f"one dtype, or dtype= to convert them",
        )

    def read(self, name: str, dtype: str | None) -> np.ndarray[Any, Any]:
        return self.checkpoint.read(self.start + name, dtype)

    def count(self, names: Iterable[str]) -> int:
        """Elements of these tensors."""
        return sum(math.prod(self.checkpoint.entry(self.start + name).shape) for name in names)

    def sound(self, starts: tuple[str, ...]) -> dict[str, Entry]:
        """The tensors whose names start so, without those that are damaged."""
        found = {}
        for name in self.names:
            if name.startswith(starts):
                try:
                    found[name] = self.checkpoint.entry(self.start + name)
                except (ValueError, FileNotFoundError):
                    continue
        return found

    def wrong(self, name: str, sentence: str) -> ValueError:
        return ValueError(f"{self.checkpoint.place(self.start + name)} {sentence}")
