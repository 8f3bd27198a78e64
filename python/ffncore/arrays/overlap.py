"""Arrays that results are written to: writable, of one place for each element, apart from inputs.

Outputs may have any strides, as long as no two of their elements share memory.
Tests: tests/values/test_errors.py, tests/functional/test_strides.py.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable
from typing import Any

import numpy as np

from .dtypes import FLOAT32, dtype_name, is_narrow
from .shapes import ALIGNED, C_CONTIGUOUS, Array, MaybeArray, as_array, check_shape

# C-contiguous (so that no two elements share memory), aligned, writable.
SIMPLE_OUT = C_CONTIGUOUS | ALIGNED | 0x0400

# The array has memory of its own, from numpy: it overlaps its own views and nothing else.
OWNS = 0x0004

# Work that np.shares_memory may spend on one pair before we call it an overlap. Two-dimensional
# arrays need a few hundred steps at most; only contrived strides in many dimensions need more.
OVERLAP_WORK = 100_000


def overlaps_itself(array: Array) -> bool:
    """Whether two indices lead to the same memory; exact for up to two dimensions that count."""
    axes = [(n, abs(s)) for n, s in zip(array.shape, array.strides, strict=True) if n > 1]
    if array.size == 0 or not axes:
        return False
    if any(stride == 0 for _, stride in axes):
        return True
    # Widest stride last; each must step over everything that lies below it.
    axes.sort(key=lambda axis: axis[1])
    reach = 0
    for length, stride in axes:
        if stride <= reach:
            break
        reach += (length - 1) * stride
    else:
        return False
    if len(axes) == 2:
        # i s0 = j s1 has the smallest solution i = s1 / g, j = s0 / g.
        (n0, s0), (n1, s1) = axes
        g = math.gcd(s0, s1)
        return bool(s1 // g < n0 and s0 // g < n1)
    return True


def owners(arrays: Iterable[Array]) -> frozenset[int] | None:
    """Which arrays have the memory of these: their ids; None where that cannot be told.

    An array that OWNS its memory overlaps these exactly if it is one of the owners.
    """
    found = set()
    for array in arrays:
        while isinstance(array.base, np.ndarray):
            array = array.base
        if array.flags.num & OWNS:
            found.add(id(array))
            continue
        base: object = array.base
        if isinstance(base, memoryview):
            base = base.obj
        if not isinstance(base, (bytes, mmap.mmap)):  # those are memory of no array
            return None
    return frozenset(found)


def share_memory(a: Array, b: Array) -> bool:
    if a is not b and a.flags.num & b.flags.num & OWNS:
        return False
    if not np.may_share_memory(a, b):
        return False
    work: Any = OVERLAP_WORK
    try:
        return bool(np.shares_memory(a, b, max_work=work))
    except np.exceptions.TooHardError:
        return True


def check_out(
    name: str,
    out: object,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    reason: str,
    *,
    or_float32: bool = False,
) -> Array:
    """An array that results can be written to: shape, dtype, writable, no inner overlap.

    or_float32: float32 beside 16 bits will do, too.
    """
    array = as_array(name, out)
    wide = or_float32 and is_narrow(dtype)
    if array.dtype != dtype and not (wide and array.dtype == FLOAT32):
        raise TypeError(
            f"{name} has dtype {dtype_name(array.dtype)}; expected {dtype.name}"
            f"{' or float32' if wide else ''} {reason}"
        )
    check_shape(name, array, shape, reason)
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only; expected a writable array")
    if not array.flags.num & ALIGNED:
        raise ValueError(
            f"{name} has strides {array.strides} at an address that is not a whole number of "
            f"elements; expected an aligned array"
        )
    if overlaps_itself(array):
        raise ValueError(
            f"{name} has strides {array.strides} for shape {array.shape}, so that elements share "
            f"memory; expected one place for each element"
        )
    return array


def check_apart(name: str, out: Array, others: Iterable[tuple[str, MaybeArray]]) -> None:
    """out must not overlap what is read, or another output."""
    for other, array in others:
        if array is not None and share_memory(out, array):
            raise ValueError(f"{name} overlaps {other}; expected memory of its own")
