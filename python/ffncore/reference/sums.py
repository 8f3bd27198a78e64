"""The order of every sum over inputs, hidden units or tokens, bit by bit, and what it loses.

    block     512 terms, one chain from +0:   s = fma(a[k], b[k], s), or s + v[k]
    partial   64 blocks (32768 terms), added in order
    sum       partial sums, added in order

float32 and float64 add up in this order on every instruction set. A sum of n terms meets at most
`additions(n)` roundings on the way of each term, so that its error is at most

    error_bound(n) * (|a[0] b[0]| + |a[1] b[1]| + ...)

which is the usual bound of floating-point summation (Higham, Accuracy and Stability of Numerical
Algorithms, section 4.2). For 4 million terms it is 4.2e-5 in float32; one chain of all blocks would
have 5e-4. 16 bits compute in float32; bfloat16 takes the terms of a block in pairs, the odd one
first, which changes no bound. Part of ffncore.reference.
Tests: tests/reference/test_reference_sums.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..arrays.dtypes import FLOAT32
from ..arrays.shapes import Array

BLOCK = 512
PARTIAL_SUM = 64 * BLOCK


def fma(a: Array, b: Array, c: Array) -> Array:
    """a b + c of float32, rounded once.

    The product is exact in float64. The sum is rounded to odd there: where something is lost, the
    last bit is made 1, which then tells the rounding to float32 on which side of a tie it is.
    """
    product, c = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + c
    rest = total - product
    lost = (product - (total - rest)) + (c - rest)
    even = total.view(np.int64) % 2 == 0
    towards = np.where(lost > 0, np.inf, -np.inf)
    odd = np.where((lost != 0) & even, np.nextafter(total, towards), total)
    return np.asarray(odd.astype(FLOAT32))


def sum_in_order(values: npt.ArrayLike) -> Array:
    """values [n, ...] -> [...], the sum over the first axis: a bias gradient over n tokens.

    float32 or float64.
    """
    v = np.asarray(values)
    return _blocks_in_order(
        len(v), v.shape[1:], v.dtype, lambda sums, rows: np.asarray(sums + v[rows])
    )


def product_in_order(a: npt.ArrayLike, b: npt.ArrayLike) -> Array:
    """a [n, i], b [n, j] -> a^T b [i, j] in float32: a weight gradient over n tokens.

    With a = x^T and b = W^T it is the forward product x W^T, where n is d_model.
    """
    a, b = np.asarray(a, FLOAT32), np.asarray(b, FLOAT32)

    def step(sums: Array, rows: Array) -> Array:
        return fma(a[rows][:, :, None], b[rows][:, None, :], sums)

    return _blocks_in_order(len(a), (a.shape[1], b.shape[1]), FLOAT32, step)


def _blocks_in_order(n: int, shape: tuple[int, ...], dtype: np.dtype, step) -> Array:  # type: ignore[no-untyped-def]
    """All blocks side by side: step(sums [blocks, ...], rows [blocks]) adds a term to each."""
    starts = np.arange(0, n, BLOCK)
    sums = np.zeros((len(starts), *shape), dtype)
    for k in range(min(n, BLOCK)):
        rows = starts + k
        inside = rows < n
        sums[inside] = step(sums[inside], rows[inside])
    total: Array | None = None
    for first in range(0, len(sums), PARTIAL_SUM // BLOCK):
        partial = sums[first]
        for block in sums[first + 1 : first + PARTIAL_SUM // BLOCK]:
            partial = partial + block
        total = partial if total is None else total + partial
    return np.zeros(shape, dtype) if total is None else np.asarray(total)


def additions(n: int) -> int:
    """Roundings that a term of a sum of n terms goes through, at most."""
    blocks, partials = -(-n // BLOCK), -(-n // PARTIAL_SUM)
    return min(n, BLOCK) + max(0, min(blocks, PARTIAL_SUM // BLOCK) - 1) + max(0, partials - 1)


def error_bound(n: int, dtype: npt.DTypeLike = FLOAT32) -> float:
    """The largest error of a sum of n terms, as a share of the sum of their absolute values."""
    roundings = additions(n) * float(np.finfo(dtype).eps) / 2
    return roundings / (1 - roundings)
