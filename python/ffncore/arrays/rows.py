"""Merges the leading dimensions of arrays [..., d] to the [T, d] that the kernels take.

    [a, b, c, d] -> [a b c, d]     a view, if the stride of a is b times that of b, and so on

If the strides allow no such view, or elements are not aligned, the array is copied, one block of
bounded size at a time, so that the memory of a call does not grow with the number of tokens. A
computation that cannot be divided, because it sums over tokens or fills one array for all of them,
runs as one block: cut=0.

The bits of a row do not depend on the other rows, so that blocks do not change the result.
Tests: tests/arrays/test_rows.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, TypeVar

import numpy as np

from .shapes import ALIGNED, C_CONTIGUOUS, Array, MaybeArray

Index: TypeAlias = tuple[int | slice, ...]
Result = TypeVar("Result")

# The size of a block of one array. A call copies at most three (x and two gradients), which stays
# far below the 64 MiB that it may use. A block of 4096 float32 columns still has 512 rows, which
# is enough for full speed.
BLOCK_BYTES = 8 * 2**20


def row_count(shape: tuple[int, ...]) -> int:
    """The number of tokens of an array [..., d]."""
    return math.prod(shape[:-1])


def merges(array: Array) -> bool:
    """Whether the strides allow [..., d] as a view [T, d]."""
    expected = None
    for length, stride in zip(array.shape[-2::-1], array.strides[-2::-1], strict=True):
        if length == 1:
            continue
        if expected is not None and stride != expected:
            return array.size == 0
        expected = length * stride
    return True


def rows_view(array: Array) -> MaybeArray:
    """A view [T, d] that kernels can read and write, or None if there is none."""
    flags, shape = array.flags.num, array.shape
    if not flags & ALIGNED:
        return None
    if len(shape) == 2:
        return array
    # Most arrays have no gaps: that is quicker to find out.
    return (
        array.reshape(row_count(shape), shape[-1])
        if flags & C_CONTIGUOUS or merges(array)
        else None
    )


def blocks(shape: tuple[int, ...], itemsize: int, cut: int) -> Iterator[Index]:
    """Indices of blocks of at most BLOCK_BYTES, which divide the first `cut` dimensions."""
    if cut == 0:
        yield ()
        return
    entry = math.prod(shape[1:]) * itemsize
    if entry > BLOCK_BYTES and cut > 1:
        for i in range(shape[0]):
            for rest in blocks(shape[1:], itemsize, cut - 1):
                yield (i, *rest)
        return
    step = max(1, BLOCK_BYTES // max(1, entry))
    for start in range(0, shape[0], step):
        yield (slice(start, start + step),)


def over_rows(
    run: Callable[..., Result],
    inputs: Sequence[MaybeArray],
    outputs: Sequence[MaybeArray],
    *,
    cut: int,
    keep: bool = False,
) -> list[Result]:
    """Call run(*inputs, *outputs) with every array as [T, d], and return its result for each block.

    All arrays have the same leading dimensions; None stays None. cut: how many of their dimensions
    may be divided into blocks. keep: run reads the outputs, too, because it adds to them.
    """
    arrays = [*inputs, *outputs]
    rows: list[MaybeArray] = []
    for array in arrays:
        row = None if array is None else rows_view(array)
        if row is None and array is not None:
            break
        rows.append(row)
    else:
        return [run(*rows)]
    first = next(a for a in arrays if a is not None)
    results = []
    for index in blocks(first.shape, first.itemsize, cut):
        parts = [None if a is None else a[index] for a in arrays]
        rows = [None if part is None else rows_view(part) for part in parts]
        copied = [i for i, part in enumerate(parts) if part is not None and rows[i] is None]
        for i in copied:
            rows[i] = _copy(parts[i], filled=keep or i < len(inputs))  # type: ignore[arg-type]
        results.append(run(*rows))
        for i in copied:
            if i >= len(inputs):
                part, row = parts[i], rows[i]
                part[...] = row.reshape(part.shape)  # type: ignore[index, union-attr]
    return results


def _copy(part: Array, filled: bool) -> Array:
    """A new array [T, d] like part, with its numbers if `filled`."""
    shape = (row_count(part.shape), part.shape[-1])
    if not filled:
        return np.empty(shape, part.dtype)
    return np.array(part, order="C", copy=True).reshape(shape)
