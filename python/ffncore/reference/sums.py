"""The order of the additions in every sum over inputs, hidden units or tokens, and its error.

    block     512 terms, one chain from +0:   s = fma(a[k], b[k], s), or s + v[k]
    partial   the sum of 64 blocks (32768 terms), in order
    sum       the sum of the partial sums, in order

float32 and float64 use this order with every instruction set. Each term of a sum of n terms goes
through at most `additions(n)` roundings, so that the error of the sum is at most

    error_bound(n) * (|a[0] b[0]| + |a[1] b[1]| + ...)

which is the usual bound of floating-point summation (Higham, Accuracy and Stability of Numerical
Algorithms, section 4.2). For 4 million terms it is 4.2e-5 in float32; a single chain of all blocks
would have 5e-4. 16-bit dtypes are computed in float32. bfloat16 takes the terms of a block in
pairs, the odd one first, which does not change the bound. Part of ffncore.reference.
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
    """a b + c of float32 arrays, rounded once.

    The product is exact in float64. The sum is rounded to odd there: if it is inexact, its last bit
    becomes 1, so that the rounding to float32 knows on which side of a tie the exact sum is.
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
    """Sum over the first axis in the order of the kernels, such as a bias gradient over tokens.

    values  [n, ...], float32 or float64

    Returns the sum, [...], with the bits that the kernels compute.

    >>> fc.reference.sum_in_order(x).shape
    """
    v = np.asarray(values)
    return _blocks_in_order(
        len(v), v.shape[1:], v.dtype, lambda sums, rows: np.asarray(sums + v[rows])
    )


def product_in_order(a: npt.ArrayLike, b: npt.ArrayLike) -> Array:
    """Compute a^T b in float32 in the order of the kernels, such as a weight gradient over tokens.

    a  [n, i]
    b  [n, j]

    Returns a^T b, [i, j] float32, with the bits that the kernels compute. With a = x^T and b = W^T
    it is the product x W^T of a forward pass, where n is d_model.

    >>> fc.reference.product_in_order(x, x).shape
    """
    a, b = np.asarray(a, FLOAT32), np.asarray(b, FLOAT32)

    def step(sums: Array, rows: Array) -> Array:
        return fma(a[rows][:, :, None], b[rows][:, None, :], sums)

    return _blocks_in_order(len(a), (a.shape[1], b.shape[1]), FLOAT32, step)


def _blocks_in_order(n: int, shape: tuple[int, ...], dtype: np.dtype, step) -> Array:  # type: ignore[no-untyped-def]
    """Sum all blocks at once: step(sums [blocks, ...], rows [blocks]) adds one term to each."""
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
    """The largest number of roundings that a term goes through in a sum of n terms."""
    blocks, partials = -(-n // BLOCK), -(-n // PARTIAL_SUM)
    return min(n, BLOCK) + max(0, min(blocks, PARTIAL_SUM // BLOCK) - 1) + max(0, partials - 1)


def error_bound(n: int, dtype: npt.DTypeLike = FLOAT32) -> float:
    """Return a bound of the error of a sum of n terms, relative to the sum of their magnitudes.

    n      the number of terms
    dtype  in which they are added: float32 or float64

    It is u / (1 - u) with u = additions * eps / 2, where additions is the number of roundings that
    a term goes through (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2).

    >>> fc.reference.error_bound(4096)
    """
    roundings = additions(n) * float(np.finfo(dtype).eps) / 2
    return roundings / (1 - roundings)
