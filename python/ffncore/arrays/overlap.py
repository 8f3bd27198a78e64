"""Checks of output arrays: writable, no two elements in the same memory, no overlap with inputs.

Outputs may have any strides that fulfil this.
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

# The bit NPY_ARRAY_OWNDATA: the memory is the array's own, so that it overlaps only its views.
OWNS = 0x0004

# The steps that np.shares_memory may take for two arrays; if it needs more, they count as
# overlapping. Two-dimensional arrays need a few hundred, only contrived strides need more.
OVERLAP_WORK = 100_000


def overlaps_itself(array: Array) -> bool:
    """Whether two elements share memory. For more than two dimensions of length above 1, True may
    also mean that this is not known.
    """
    axes = [(n, abs(s)) for n, s in zip(array.shape, array.strides, strict=True) if n > 1]
    if array.size == 0 or not axes:
        return False
    if any(stride == 0 for _, stride in axes):
        return True
    # By increasing stride: no two elements overlap if each stride exceeds the extent of all
    # dimensions before it.
    axes.sort(key=lambda axis: axis[1])
    reach = 0
    for length, stride in axes:
        if stride <= reach:
            break
        reach += (length - 1) * stride
    else:
        return False
    if len(axes) == 2:
        # The smallest solution of i s0 = j s1 is i = s1 / g, j = s0 / g.
        (n0, s0), (n1, s1) = axes
        g = math.gcd(s0, s1)
        return bool(s1 // g < n0 and s0 // g < n1)
    return True


def owners(arrays: Iterable[Array]) -> frozenset[int] | None:
    """The ids of the arrays that own the memory of these arrays; None if that is not known.

    An array that owns its memory overlaps these arrays if and only if it is one of the owners.
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
        if not isinstance(base, (bytes, mmap.mmap)):  # no array owns the memory of these
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
    """Check an array that results are written to: shape, dtype, writable, no inner overlap.

    or_float32: accept float32, too, if dtype has 16 bits.
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
            f"{name} has strides {array.strides} and an address that are not all multiples of the "
            f"element size; expected an aligned array"
        )
    if overlaps_itself(array):
        raise ValueError(
            f"{name} has strides {array.strides} for shape {array.shape}, so that elements share "
            f"memory; expected separate memory for each element"
        )
    return array


def check_apart(name: str, out: Array, others: Iterable[tuple[str, MaybeArray]]) -> None:
    """Check that an output does not overlap inputs or other outputs."""
    for other, array in others:
        if array is not None and share_memory(out, array):
            raise ValueError(f"{name} overlaps {other}; expected memory of its own")
