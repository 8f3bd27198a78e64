"""Checks of array arguments: types, shapes and sizes.

An error is one sentence that names the argument, what was found and what is expected: ValueError
for shapes and values, TypeError for types and dtypes. All arguments are checked before anything is
computed.

Inputs may have any strides, also negative, zero or transposed ones: the kernels read them in place.
Only an array with unaligned elements, such as a field of a packed structure, is copied first.
dtypes.py checks dtypes, overlap.py outputs, and rows.py merges leading dimensions.

Tests: tests/values/test_errors.py, tests/functional/test_strides.py.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
MaybeArray: TypeAlias = Array | None


# The bit NPY_ARRAY_ALIGNED of ndarray.flags.num. With our dtypes and platforms it also means that
# the strides of all dimensions with more than one entry are multiples of the element size.
ALIGNED = 0x0100


# NPY_ARRAY_C_CONTIGUOUS of the same.
C_CONTIGUOUS = 0x0001

# No array of a call may exceed this many elements. Byte counts of two such arrays, padded to
# panels, then still fit into 63 bits (2^57 elements x 8 bytes x 2 = 2^61).
MAX_ELEMENTS = 2**57


def as_array(name: str, value: object) -> Array:
    """Return a numpy array as it is, and an array of a subclass as a view of class ndarray."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; expected a plain numpy array (fill it first)")
    if isinstance(value, np.ndarray):
        return value.view(np.ndarray)
    raise TypeError(f"{name} is of type {type(value).__name__}; expected a numpy array")


def check_rank(name: str, array: Array, rank: int, meaning: str) -> None:
    if array.ndim != rank:
        raise ValueError(f"{name} has shape {array.shape}; expected {rank}-dimensional {meaning}")


def check_shape(name: str, array: Array, expected: tuple[int, ...], reason: str) -> None:
    if array.shape == expected:
        return
    turned = ""
    if array.ndim >= 2 and array.swapaxes(-1, -2).shape == expected:
        turned = f" (transposed? pass {name}.{'T' if array.ndim == 2 else 'swapaxes(-1, -2)'})"
    raise ValueError(f"{name} has shape {array.shape}; expected {expected} {reason}{turned}")


def check_width(x: Array, name: str, matrix: tuple[int, ...]) -> None:
    """x is [..., d], for a matrix [..., d] of that name and shape."""
    if x.ndim == 0:
        raise ValueError("x has shape (); expected [..., d_model]")
    if x.shape[-1] != matrix[-1]:
        raise ValueError(
            f"x has shape {x.shape}; expected a last dimension of {matrix[-1]} "
            f"to match {name} {matrix}"
        )


def check_size(rows: int, columns: int, what: str) -> None:
    """Check that rows x columns elements, with padding, can be counted; `what` names the two."""
    if rows * columns > MAX_ELEMENTS:
        raise ValueError(
            f"{what} make {rows} x {columns} elements; expected at most {MAX_ELEMENTS} in one array"
        )


def aligned(array: Array) -> Array:
    """The array, or a copy if its elements are not aligned."""
    return array if array.flags.num & ALIGNED else np.array(array, order="C", copy=True)
