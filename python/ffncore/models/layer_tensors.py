"""The tensors of one layer of a checkpoint, checked by the headers of the files.

    tensors.take("mlp.up_proj.weight", "f d")       defines f and d
    tensors.take("mlp.down_proj.weight", "d f")     has to have the same f and d

A tensor of the layer that is never taken would be left out of the computation, so it is an error.
Tests: tests/models/test_layer_tensors.py, tests/models/test_models_moe.py.
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
    """The tensors of a layer by name; names are without their common start, such as "layers.3."."""

    def __init__(self, checkpoint: Checkpoint, start: str, names: Iterable[str]) -> None:
        self.checkpoint = checkpoint
        self.start = start
        self.names = frozenset(names)
        self.sizes: dict[str, int] = {}  # E, f, d, ...
        self.taken: dict[str, str] = {}  # name -> dtype

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def have(self, starts: tuple[str, ...]) -> bool:
        """Whether the name of a tensor starts with one of these."""
        return any(name.startswith(starts) for name in self.names)

    def take(self, name: str, axes: str) -> None:
        """Check that a tensor exists, is not damaged, and has a supported dtype and these sizes.

        axes  a size for each axis: a number, a letter that stands for one size in all tensors, or a
              multiple of it such as "2f"
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

    def take_number(self, name: str) -> None:
        """Check a tensor of one element."""
        shape = self.shape(name) if name in self else ()
        self.take(name, " ".join("1" for _ in shape))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of the layer, from the header."""
        return self.checkpoint.entry(self.start + name).shape

    def _fits(self, size: int, times: int, letter: str) -> bool:
        if not letter:
            return size == times
        if letter not in self.sizes:
            if size == 0 or size % times:
                return False
            self.sizes[letter] = size // times
        return size == times * self.sizes[letter]

    def left_over(self, starts: tuple[str, ...]) -> None:
        """Raise ValueError if a tensor whose name starts with one of these was not taken."""
        rest = [n for n in self.names if n.startswith(starts) and n not in self.taken]
        if rest:
            raise self.wrong(
                min(rest),
                "is a tensor that ffncore does not use in such a layer; expected no such tensor",
            )

    def same_dtype(self, names: Iterable[str], biases: tuple[str, ...] = ()) -> None:
        """Check that `names` have one dtype; those of `biases` have it, too, or are float32 where
        it has 16 bits.
        """
        names = list(names)
        for name in (*names, *biases):
            first, found = self.taken[names[0]], self.taken[name]
            narrow = first in ("float16", "bfloat16") and found == "float32"
            if found != first and not (narrow and name in biases):
                raise self._mixed(name, names[0])

    def same_precision(self, name: str, other: str, *, widened: bool) -> None:
        """Check that both tensors are float64, or neither; if `widened`, the first may be narrower
        than the other, because it is converted.
        """
        wide, expected = (self.taken[n] == "float64" for n in (name, other))
        if wide != expected and not (widened and expected):
            raise self._mixed(name, other)

    def _mixed(self, name: str, other: str) -> ValueError:
        return self.wrong(
            name,
            f"has dtype {self.taken[name]} and {shown(other)} has {self.taken[other]}; expected "
            f"one dtype, or dtype= to convert them",
        )

    def read(self, name: str, dtype: str | None, rows: range | None = None) -> np.ndarray[Any, Any]:
        return self.checkpoint.read(self.start + name, dtype, rows)

    def read_number(self, name: str) -> float:
        return float(self.read(name, None).reshape(()))

    def count(self, names: Iterable[str]) -> int:
        """The number of elements of these tensors."""
        return sum(math.prod(self.checkpoint.entry(self.start + name).shape) for name in names)

    def sound(self, starts: tuple[str, ...]) -> dict[str, Entry]:
        """The tensors whose names start with one of these, without those that are damaged."""
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
