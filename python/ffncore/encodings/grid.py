"""The numbers that codes stand for: one formula for every format, and its inverse.

    w = scales * (values[codes] - zeros) + offsets                     float32, in this order

values is a table of the format: integers, or the numbers of a small float type. scales, zeros and
offsets hold one number for each group of weights in a row; zeros and offsets may be missing. The
product is rounded once and the sum once, as other readers of these formats do, so that dequantised
weights have the bits that these readers give.

Levels is the table and the choice of the nearest code, Grid the numbers of the groups, and Planes
the codes and the Grid of a whole matrix. Tests: tests/encodings/test_grid.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..arrays.dtypes import FLOAT32
from ..arrays.shapes import Array, MaybeArray

# The elements that one step works on: a few arrays of this size fit into a core's cache.
CHUNK = 2**18


class Levels(NamedTuple):
    """The values of codes.

    values   the value of each code: int8, or float32
    low      the smallest and
    high     the largest value that quantising uses
    half     half the distance of the outermost two of them
    nearest  from numbers [...] in units of the scale to codes, uint8; it may overwrite its argument
    """

    values: Array
    low: float
    high: float
    half: float
    nearest: Callable[[Array], Array]

    def of(self, codes: Array) -> Array:
        """The values of codes as float32."""
        return self.values.astype(FLOAT32)[codes]


def integers(bits: int, center: int, low: int, high: int) -> Levels:
    """Codes of `bits` bits, of which `center` stands for 0; low and high are the values in use."""
    codes = np.arange(2**bits)
    values = codes - center
    if bits == 8 and center == 0:  # two's complement
        values = np.where(codes < 128, codes, codes - 256)

    def nearest(t: Array) -> Array:
        np.clip(np.rint(t, out=t), low, high, out=t)
        t += center
        return t.astype(np.int16).astype(np.uint8)

    return Levels(values.astype(np.int8), low, high, 0.5, nearest)


def signs() -> Levels:
    """One bit: -1 and +1; 0 becomes +1."""
    return Levels(np.array([-1, 1], np.int8), -1, 1, 1.0, lambda t: (t >= 0).astype(np.uint8))


def floats(magnitudes: Array) -> Levels:
    """A sign and a magnitude: code m has the value magnitudes[m], and the next bit is the sign.

    magnitudes  float32, rising; ties go to the even code. NaN marks codes that are not numbers
    """
    finite = magnitudes[np.isfinite(magnitudes)]
    bit = len(magnitudes)
    middles = (finite[1:] + finite[:-1]).astype(FLOAT32) / 2
    # searchsorted sends a tie to the lower code; after an odd code it has to go up.
    middles[1::2] = np.nextafter(middles[1::2], FLOAT32.type(0))

    def nearest(t: Array) -> Array:
        codes = np.searchsorted(middles, np.abs(t)).astype(np.uint8)
        codes[np.signbit(t)] |= bit
        return codes

    high = float(finite[-1])
    values = np.concatenate([magnitudes, -magnitudes])
    return Levels(values, -high, high, (high - float(finite[-2])) / 2, nearest)


class Grid(NamedTuple):
    """The numbers of groups, float32 [rows, groups]; one row or one group stands for all."""

    scales: Array
    zeros: MaybeArray = None
    offsets: MaybeArray = None

    def each(self, change: Callable[[Array], Any]) -> Grid:
        """The grid with each of its arrays changed."""
        zeros, offsets = (None if a is None else change(a) for a in self[1:])
        return Grid(change(self.scales), zeros, offsets)

    def part(self, rows: slice) -> Grid:
        return self.each(lambda a: a if len(a) == 1 else a[rows])

    def spread(self, group: int, k: int, g_idx: MaybeArray = None) -> Grid:
        """The grid with one column for each of k weights, or one column for all of them."""
        if g_idx is not None:
            return self.each(lambda a: a[:, g_idx])
        return self.each(lambda a: a if a.shape[1] == 1 else np.repeat(a, group, axis=1)[:, :k])


class Planes(NamedTuple):
    """A matrix: codes uint8 [rows, k], its Grid, and how the two belong together.

    group   weights of a row with one entry of the grid; the last group of a row may be shorter
    g_idx   the entry for each of the k weights, if it does not follow from the group
    """

    codes: Array
    levels: Levels
    grid: Grid
    group: int
    g_idx: MaybeArray = None


# Numbers of a Grid as products: codes int8 [rows, groups], factors float32 [rows, blocks].
Products: TypeAlias = dict[str, tuple[Array, Array]]


def row_chunks(rows: int, k: int) -> Iterator[slice]:
    step = max(1, CHUNK // max(1, k))
    for start in range(0, rows, step):
        yield slice(start, start + step)


def _grouped(w: Array, grid: Grid, group: int, g_idx: MaybeArray = None) -> tuple[Array, Grid]:
    """w [rows, k] and its grid in shapes that broadcast; w is a view, [rows, groups, group] if rows
    consist of whole groups.
    """
    rows, k = w.shape
    if g_idx is not None or grid.scales.shape[1] * group != k:
        return w, grid.spread(group, k, g_idx)
    return w.reshape(rows, -1, group), grid.each(lambda a: a[..., None])


@np.errstate(all="ignore")
def dequantized(planes: Planes) -> Array:
    """The numbers of a matrix, float32 [rows, k]."""
    codes = planes.codes
    rows, k = codes.shape
    out = np.empty((rows, k), FLOAT32)
    values = planes.levels.values.astype(FLOAT32)
    for part in row_chunks(rows, k):
        w = np.take(values, codes[part], out=out[part], mode="clip")
        w, own = _grouped(w, planes.grid.part(part), planes.group, planes.g_idx)
        if own.zeros is not None:
            w -= own.zeros
        w *= own.scales
        if own.offsets is not None:
            w += own.offsets
    return out


@np.errstate(all="ignore")
def nearest_codes(w: Array, levels: Levels, grid: Grid, group: int) -> Array:
    """The codes [rows, k] whose numbers are nearest to w [rows, k]; 0 / 0 counts as 0."""
    rows, k = w.shape
    codes = np.empty((rows, k), np.uint8)
    for part in row_chunks(rows, k):
        x, own = _grouped(w[part], grid.part(part), group)
        codes[part] = levels.nearest(in_units(x, own)).reshape(-1, k)
    return codes


@np.errstate(all="ignore")
def in_units(w: Array, grid: Grid) -> Array:
    """(w - offsets) / scales + zeros, a new array; 0 where the scale is 0."""
    t: Array = w - grid.offsets if grid.offsets is not None else w.copy()
    scales: Any = grid.scales
    t /= np.where(scales == 0, np.inf, scales).astype(t.dtype, copy=False)
    if grid.zeros is not None:
        t += grid.zeros
    return t
