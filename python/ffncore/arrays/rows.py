"""[..., d] as the [T, d] that the kernels take: in place where strides allow, else in blocks.

    [a, b, c, d] -> [a b c, d]     a view where each leading dimension steps over the next one whole

Strides alone tell; nothing is copied to find out. What has no such view (leading dimensions in
another order, elements that are not aligned) is copied, a block of bounded size at a time, so that
a call takes no memory that grows with the number of tokens. A computation that cannot be cut, since
it sums over tokens or fills one array for all of them, runs as one block: cut=0.

The bits of a row do not depend on the rows beside it, so blocks change nothing.
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

# Of one array. A call copies three at most (x and both gradients), which together stay far below
# the 64 MiB that it may take; a block of 4096 columns still has 512 rows, enough for full speed.
BLOCK_BYTES = 8 * 2**20


def row_count(shape: tuple[int, ...]) -> int:
    """Tokens of an array [..., d]."""
    return math.prod(shape[:-1])


def merges(array: Array) -> bool:
    """Whether [..., d] -> [T, d] is a view."""
    expected = None
    for length, stride in zip(array.shape[-2::-1], array.strides[-2::-1], strict=True):
        if length == 1:
            continue
        if expected is not None and stride != expected:
            return array.size == 0
        expected = length * stride
    return True


def rows_view(array: Array) -> MaybeArray:
    """[T, d] that kernels can read and write in place, or None where there is none."""
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
    """Indices that cut the first `cut` dimensions so that a block has at most BLOCK_BYTES."""
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
    """run(*inputs, *outputs) with every array as [T, d]; what it returned, for each block.

    All arrays have one shape; None stays None. keep: run adds to what the outputs hold.
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
    """[T, d] of its own, with part's numbers if they are wanted."""
    shape = (row_count(part.shape), part.shape[-1])
    if not filled:
        return np.empty(shape, part.dtype)
    return np.array(part, order="C", copy=True).reshape(shape)
