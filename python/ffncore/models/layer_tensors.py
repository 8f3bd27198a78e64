"""The tensors of one layer of a checkpoint, checked by the headers of the files.

    tensors.take("mlp.up_proj.weight", "f d")       defines f and d
    tensors.take("mlp.down_proj.weight", "d f")     has to have the same f and d

A tensor of the layer that is never taken would be left out of the computation, so it is an error.

A quantised matrix has one name, whatever tensors it consists of (schemes.py), and the name of its
format as its dtype. Tests: tests/models/test_layer_tensors.py, tests/models/test_models_moe.py,
tests/models/test_schemes.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..arrays.dtypes import SUPPORTED, as_dtype, converted
from ..encodings.tensor import QuantizedTensor
from . import schemes
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
        names = frozenset(names)
        self._codes = schemes.found_in(names)
        parts = {part for stored in self._codes.values() for part in stored.names.values()}
        self.names = (names - parts) | self._codes.keys()
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
        entry = self.entry(name)
        if entry.dtype not in FLOATS and not self.quantized(name):
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
        return self.entry(name).shape

    def entry(self, name: str) -> Entry:
        """The Entry of a tensor. The dtype of a quantised one is its format, and its bytes are
        those of all its parts.
        """
        if name not in self._codes:
            return self.checkpoint.entry(self.start + name)
        scheme, entries = self._scheme(name)
        shape = self._weights(name, scheme, entries)
        format = scheme.format_of(entries, shape)
        return Entry(shape, format, 0, sum(e.end - e.begin for e in entries.values()))

    def quantized(self, name: str) -> bool:
        """Whether a tensor is stored in a format, and not as numbers."""
        return name in self._codes or (
            name in self.names
            and self.checkpoint.architecture is not None
            and self.entry(name).dtype not in FLOATS
        )

    def turned(self, name: str) -> bool:
        """Whether a matrix is [out, in] even where the model stores [in, out]."""
        return name in self._codes and self._scheme(name)[0].turned

    def _scheme(self, name: str) -> tuple[schemes.Scheme, dict[str, Entry]]:
        """How a quantised matrix is stored, and its entries by part."""
        stored = self._codes[name]
        entries = {
            part: self.checkpoint.entry(self.start + told) for part, told in stored.names.items()
        }
        for scheme in stored.schemes:
            if scheme.fits(entries):
                own = scheme.ends or tuple(entries)
                return scheme, {part: entries[part] for part in own if part in entries}
        found = ", ".join(
            f"{stored.names[part]} of {e.dtype} {e.shape}" for part, e in sorted(entries.items())
        )
        who = " or ".join(scheme.name for scheme in stored.schemes)
        raise self.wrong(name, f"is stored in {found}; expected dtypes and shapes of {who}")

    def _weights(
        self, name: str, scheme: schemes.Scheme, entries: dict[str, Entry]
    ) -> tuple[int, ...]:
        """The shape of a quantised matrix."""
        names = self._codes[name].names
        try:
            if scheme.name == schemes.OWN:
                format = str(scheme.format)
                key = f"{self.start}{name}.{format}"
                first = self.start + next(iter(names.values()))
                return schemes.own_shape(self.checkpoint.metadata(first, key), format)
            return scheme.shape(
                entries, lambda part: self.checkpoint.read(self.start + names[part], None)
            )
        except ValueError as error:
            raise self.wrong(name, str(error)) from None

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
        if any(self.quantized(name) for name in names):
            for name in (*names, *biases):
                if self.taken[name] == "float64":
                    raise self.wrong(
                        name,
                        "has dtype float64; expected float32 or 16 bits beside quantised weights, "
                        "or dtype= to convert them",
                    )
            return
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
        """A tensor as an array; a quantised one as the numbers that it stands for."""
        if not self.quantized(name):
            return self.checkpoint.read(self.start + name, dtype, rows)
        numbers = self.read_codes(name).dequantize()
        numbers = numbers if rows is None else numbers[rows.start : rows.stop]
        if dtype is None:
            return numbers
        return converted(numbers, as_dtype("dtype", dtype), self.place(name))

    def read_codes(self, name: str) -> QuantizedTensor:
        """A quantised tensor as it is stored."""
        label = self.place(name)
        if name not in self._codes:
            entry = self.entry(name)
            data = self.checkpoint.read(self.start + name, None)
            return QuantizedTensor.from_bytes(entry.dtype, data, entry.shape, name=label)
        scheme, entries = self._scheme(name)
        shape = self._weights(name, scheme, entries)
        names = self._codes[name].names
        parts = {p: self.checkpoint.read(self.start + names[p], None) for p in entries}
        told = self.checkpoint.config.quantisation_config()
        try:
            return scheme.read(parts, shape, told, label)
        except TypeError as error:  # of a file, where every fault is one of values
            raise ValueError(str(error)) from None

    def place(self, name: str) -> str:
        """The file and the name of a tensor, with which an error message about it begins."""
        if name not in self._codes:
            return self.checkpoint.place(self.start + name)
        first = next(iter(self._codes[name].names.values()))
        file = self.checkpoint.place(self.start + first)
        return file.rpartition(": ")[0] + f": {shown(self.start + name)}"

    def read_number(self, name: str) -> float:
        return float(self.read(name, None).reshape(()))

    def count(self, names: Iterable[str]) -> int:
        """The number of elements of these tensors."""
        return sum(math.prod(self.entry(name).shape) for name in names)

    def sound(self, starts: tuple[str, ...]) -> dict[str, Entry]:
        """The tensors whose names start with one of these, without those that are damaged."""
        found = {}
        for name in self.names:
            if name.startswith(starts):
                try:
                    found[name] = self.entry(name)
                except (ValueError, FileNotFoundError):
                    continue
        return found

    def wrong(self, name: str, sentence: str) -> ValueError:
        return ValueError(f"{self.place(name)} {sentence}")
