"""The n largest of each row, with NaN first and ties to the lower column, as in routing.

Numbers are compared by their bits as signed integers, in an order in which NaN is the largest. A
full sort of a row is not needed: the n-th largest number is found first, then the numbers above it
and the first ones equal to it.

Tests: tests/memory/test_selecting.py.
"""

from __future__ import annotations

import numpy as np

from ..arrays.shapes import Array


def order_keys(values: Array) -> Array:
    """Integers in the order of float32 or float64 values, equal for -0 and 0, largest for NaN."""
    integer = np.dtype(f"i{values.dtype.itemsize}")
    bits = np.ascontiguousarray(values + values.dtype.type(0)).view(integer)
    keys = np.where(bits < 0, bits ^ np.iinfo(integer).max, bits)
    return np.where(np.isnan(values), np.iinfo(integer).max, keys)


def largest(values: Array, n: int) -> Array:
    """The columns [T, n] of the n largest of values [T, f] in falling order, n <= f."""
    keys = order_keys(values)
    rows, columns = keys.shape
    if n == columns or not rows or not n:
        # ~ reverses the order of integers, and cannot overflow.
        return np.argsort(~keys, axis=1, kind="stable")[:, :n]
    least = np.partition(keys, columns - n, axis=1)[:, columns - n, None]
    above, equal = keys > least, keys == least
    room = n - above.sum(axis=1, keepdims=True)
    chosen = above | (equal & (np.cumsum(equal, axis=1) <= room))
    found = np.nonzero(chosen)[1].reshape(rows, n)
    order = np.argsort(~np.take_along_axis(keys, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)
