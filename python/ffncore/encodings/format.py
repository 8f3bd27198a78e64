"""What a format is: Format, the protocol, and BlockFormat, the formats of one block of bytes.

A format turns parts (the arrays that it stores) into Planes (grid.py), and back:

    check   parts of a shape, from anywhere       -> the parts as they are kept
    planes  parts                                 -> codes and grid
    fit     weights [rows, k] of one matrix       -> a choice of scales, as the format stores them
    grid    this choice                           -> the grid, with the rounding of the format
    build   this choice and codes [rows, k]       -> parts of one matrix

Rounding to nearest, GPTQ and HQQ differ only in the scales and codes that they choose, so that no
quantiser knows how a format stores them. Choices are dicts of arrays [rows, spans, ...], where a
span is as many weights of a row as are fitted at once. Tests: tests/encodings/test_format.py.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..arrays.dtypes import FLOAT32
from ..arrays.shapes import Array
from .bits import Bits, Trits
from .fitting import Misfit
from .grid import Grid, Levels, Planes, Products, row_chunks

Parts: TypeAlias = dict[str, Array]
Shape: TypeAlias = tuple[int, ...]


class FormatInfo(NamedTuple):
    """What fc.formats() tells of a format.

    bits_per_weight  with the scales, for rows of several groups
    group            weights with one scale, as fc.quantize makes them; None: a whole row
    source           where weights of the format come from
    can_quantize     whether fc.quantize makes it
    """

    bits_per_weight: float
    group: int | None
    source: str
    can_quantize: bool


class Format(ABC):
    """One format; see the head of this file.

    takes   the parts, and whether they are needed
    scales  what scale= of fc.quantize may be
    """

    name: str
    info: FormatInfo
    levels: Levels
    takes: Mapping[str, bool]
    scales: tuple[str, ...] = ()

    @abstractmethod
    def check(self, shape: Shape, given: Mapping[str, Any], name: str) -> Parts: ...

    @abstractmethod
    def planes(self, shape: Shape, parts: Parts) -> Planes: ...

    def products(self, shape: Shape, parts: Parts) -> Products:  # noqa: ARG002
        """The numbers of the grid that the format stores as products."""
        return {}

    @abstractmethod
    def span(self, k: int, scale: str, group: int | None) -> int:
        """The weights of a row of k that are fitted at once."""

    @abstractmethod
    def fit(self, w: Array, scale: str, group: int | None) -> Parts:
        """Choose scales; Misfit if the format cannot have these weights."""

    @abstractmethod
    def grid(self, choice: Parts, rows: int, k: int) -> tuple[Grid, int]:
        """The grid of a choice for [rows, k], and how many weights of a row share an entry."""

    @abstractmethod
    def build(self, shape: Shape, choice: Parts, codes: Array) -> Parts: ...

    def extract(self, shape: Shape, parts: Parts) -> Parts:  # noqa: ARG002
        """The parts as from_parts takes them."""
        return dict(parts)

    def to_bytes(self, parts: Parts) -> bytes:
        raise NotImplementedError


@dataclass(frozen=True)
class BlockFormat(Format):
    """A format whose blocks of `block` weights are structures of bytes, one row after the other.

    fields      the structure
    codes       where the codes of a block are
    group       weights with one entry of the grid
    grid_of     from blocks [n], structured, to a Grid [n, block / group]
    choose      from weights [n, block] and a fixed scale or None to the fields of the scales
    products_of from blocks [n] to the numbers that are products, with [n, ...] in place of rows
    average     the scale of a whole tensor from its weights; None: there is none
    variants    formats of the same name with other blocks, told apart by the number of bytes
    """

    takes = {"blocks": True}  # noqa: RUF012

    name: str
    source: str
    block: int
    group: int
    fields: np.dtype[Any]
    codes: Bits | Trits
    levels: Levels
    grid_of: Callable[[Any], Grid]
    choose: Callable[[Array, float | None], Parts]
    products_of: Callable[[Any], Products] | None = None
    average: Callable[[Array], float] | None = None
    variants: tuple[BlockFormat, ...] = ()

    @property
    def info(self) -> FormatInfo:  # type: ignore[override]
        bits = 8 * self.fields.itemsize / self.block
        return FormatInfo(bits, self.group, self.source, True)

    @property
    def scales(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("group",) if self.average is None else ("group", "tensor")

    def row_bytes(self, k: int) -> int:
        if k % self.block:
            raise Misfit(
                f"has rows of {k} weights; expected a multiple of {self.block} for {self.name}"
            )
        return k // self.block * self.fields.itemsize

    def check(self, shape: Shape, given: Mapping[str, Any], name: str) -> Parts:
        """The only part is "blocks", uint8 [..., out, bytes of a row]."""
        data = given["blocks"]
        try:
            expected = math.prod(shape[:-1]) * self.row_bytes(shape[-1])
        except Misfit as misfit:
            raise ValueError(f"{name} {misfit}") from None
        if data.size != expected:
            raise ValueError(
                f"{name} has {data.size} bytes; expected {expected} for {self.name} weights of "
                f"shape {shape}"
            )
        blocks = data.reshape(*shape[:-1], -1)
        self._check_scales(blocks, name)
        return {"blocks": blocks}

    def _check_scales(self, blocks: Array, name: str) -> None:
        per_row = blocks.shape[-1] // self.fields.itemsize
        with np.errstate(all="ignore"):
            grid = self.grid_of(self._structured(blocks))
        for numbers in grid:
            if numbers is None or np.isfinite(numbers).all():
                continue
            row, block = divmod(int(np.flatnonzero(~np.isfinite(numbers).all(axis=1))[0]), per_row)
            number = numbers[row * per_row + block]
            raise ValueError(
                f"{name} has a scale of {number[~np.isfinite(number)][0]} in block {block} of row "
                f"{row}; expected finite scales"
            )

    def planes(self, shape: Shape, parts: Parts) -> Planes:
        blocks = self._structured(parts["blocks"])
        codes = self.codes.unpack(blocks).reshape(-1, shape[-1])
        grid = self._by_row(self.grid_of(blocks), len(codes))
        return Planes(codes, self.levels, grid, self.group)

    def products(self, shape: Shape, parts: Parts) -> Products:
        if self.products_of is None:
            return {}
        found = self.products_of(self._structured(parts["blocks"]))
        rows = math.prod(shape[:-1])
        return {n: (c.reshape(rows, -1), f.reshape(rows, -1)) for n, (c, f) in found.items()}

    def span(self, k: int, scale: str, group: int | None) -> int:  # noqa: ARG002
        return self.block

    def fit(self, w: Array, scale: str, group: int | None) -> Parts:
        self.row_bytes(w.shape[1])
        if group not in (None, self.group):
            raise ValueError(f"group is {group}; expected {self.group}, that of {self.name}")
        fixed = self.average(w) if scale == "tensor" and self.average is not None else None
        blocks = w.reshape(-1, self.block)
        made = [self.choose(blocks[c], fixed) for c in row_chunks(*blocks.shape)]
        joined = {name: np.concatenate([m[name] for m in made]) for name in made[0]}
        return {n: a.reshape(len(w), -1, *a.shape[1:]) for n, a in joined.items()}

    def grid(self, choice: Parts, rows: int, k: int) -> tuple[Grid, int]:
        blocks = self._filled(choice, rows * k // self.block)
        return self._by_row(self.grid_of(blocks), rows), self.group

    def build(self, shape: Shape, choice: Parts, codes: Array) -> Parts:
        blocks = self._filled(choice, codes.size // self.block)
        self.codes.pack(codes.reshape(-1, self.block), blocks)
        return {"blocks": blocks.view(np.uint8).reshape(*shape[:-1], -1)}

    def holds(self, nbytes: int, shape: Shape) -> bool:
        """Whether weights of this shape have so many bytes."""
        blocks, rest = divmod(shape[-1], self.block)
        return not rest and nbytes == math.prod(shape[:-1]) * blocks * self.fields.itemsize

    def to_bytes(self, parts: Parts) -> bytes:
        """The bytes of a file; those of tq1_0 in the one form that quantising gives."""
        blocks: Any = parts["blocks"]
        if isinstance(self.codes, Trits):
            blocks = blocks.copy()
            structured = self._structured(blocks)
            self.codes.pack(self.codes.unpack(structured), structured)
        return blocks.tobytes()  # type: ignore[no-any-return]

    def _filled(self, choice: Parts, n: int) -> Array:
        blocks = np.zeros(n, self.fields)
        for name, values in choice.items():
            blocks[name] = values.reshape(n, *values.shape[2:])
        return blocks

    @staticmethod
    def _by_row(grid: Grid, rows: int) -> Grid:
        return grid.each(lambda a: a.reshape(rows, -1))

    def _structured(self, blocks: Array) -> Array:
        return blocks.reshape(-1, self.fields.itemsize).view(self.fields)[:, 0]


def plain_grid(blocks: Any) -> Grid:
    """The grid of a block with one scale, the field d."""
    return Grid(blocks["d"].astype(FLOAT32)[:, None])
