"""The supported dtypes float32, float64, bfloat16 and float16: their checks and conversions.

bfloat16 is a dtype of ml_dtypes, which is recognised by its name, without importing ml_dtypes. A
conversion rounds each number once, and raises ValueError if a finite number would become infinite.
Tests: tests/arrays/test_ranges.py, tests/values/test_type_errors.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .shapes import Array

FLOAT32 = np.dtype(np.float32)

FLOAT64 = np.dtype(np.float64)

FLOAT16 = np.dtype(np.float16)

SUPPORTED = "float32, float64, bfloat16 or float16"


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The name for error messages: "float32", but ">f4" if the byte order is not the machine's."""
    return str(dtype.name) if dtype.isnative else dtype.str


def supported(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    """The dtype object that this package uses for a dtype, or None if it is not supported.

    There is one object for each supported dtype, so that `is` can compare them. Dtypes in another
    byte order are not supported.
    """
    for known in _known:
        if dtype == known:
            return known
    if dtype.name == "bfloat16" and dtype.itemsize == 2:
        _known.append(dtype)
        return dtype
    return None


_known: list[np.dtype[Any]] = [FLOAT32, FLOAT64, FLOAT16]


def as_dtype(name: str, value: object) -> np.dtype[Any]:
    """A supported dtype from anything that np.dtype accepts; "bfloat16" may import ml_dtypes."""
    try:
        dtype = np.dtype(value)  # type: ignore[call-overload]
    except TypeError:
        if value != "bfloat16":
            raise TypeError(f"{name} is {value!r}; expected {SUPPORTED}") from None
        try:
            from ml_dtypes import bfloat16
        except ImportError:
            raise TypeError(
                f"{name} is 'bfloat16', for which numpy needs ml_dtypes; expected ml_dtypes to be "
                f"installed, or another dtype"
            ) from None
        dtype = np.dtype(bfloat16)
    known = supported(dtype)
    if known is None:
        raise TypeError(f"{name} is {dtype_name(dtype)}; expected {SUPPORTED}")
    return known


def _range(mantissa: int, exponent: int) -> tuple[float, float]:
    """The largest finite number, and the smallest that rounds to infinity: half a unit above it."""
    return (2 - 2.0**-mantissa) * 2.0**exponent, (2 - 2.0 ** -(mantissa + 1)) * 2.0**exponent


# float64 is not here, because every number of the other dtypes fits into it.
_RANGES = {"float32": _range(23, 127), "bfloat16": _range(7, 127), "float16": _range(10, 15)}


def check_range(name: str, array: Array, dtype: np.dtype[Any]) -> None:
    """Raise ValueError if a finite number of the array would become infinite in dtype."""
    most, too_large = _RANGES.get(dtype.name, (math.inf, math.inf))
    fits = array.dtype.name in _RANGES and _RANGES[array.dtype.name][0] < too_large
    if fits or math.isinf(most) or not array.size:
        return
    largest = _largest(array)
    if not math.isfinite(largest):  # infinity and NaN stay what they are
        with np.errstate(invalid="ignore"):
            largest = _largest(np.where(np.isfinite(array), array, array.dtype.type(0)))
    if abs(largest) >= too_large:
        raise ValueError(
            f"{name} has a largest magnitude of {abs(largest):.9g}; expected at most {most:.9g} "
            f"for {dtype.name}, where it would become inf"
        )


def _largest(array: Array) -> float:
    """The entry of largest magnitude; infinity or NaN if the array has one."""
    # The bits of numbers of one sign, read as integers, are ordered by magnitude, with NaN last.
    # numpy compares integers up to a hundred times as fast as 16-bit floats.
    bits = (array.view(f"{kind}{array.itemsize}").max() for kind in "iu")
    return max((float(b.view(array.dtype)) for b in bits), key=lambda x: (math.isnan(x), abs(x)))


def converted(array: Array, dtype: np.dtype[Any], name: str) -> Array:
    """array.astype(dtype) with one rounding; ValueError if a number would become infinite."""
    check_range(name, array, dtype)
    return rounded(array, dtype)


def rounded(array: Array, dtype: np.dtype[Any]) -> Array:
    """array.astype(dtype) with one rounding, for an array whose range has been checked."""
    if array.dtype != FLOAT64 or dtype.name != "bfloat16":
        return array.astype(dtype, copy=False)
    # ml_dtypes converts float64 to float32 first, and so rounds twice. Here the first step rounds
    # towards zero and makes the last bit odd if the result is inexact ("round to odd"), so that
    # float32 still shows on which side of a tie a number is.
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    beyond = np.abs(single) > np.abs(array)
    single = np.where(beyond, np.nextafter(single, np.float32(0)), single)
    odd: Array = (single.view(np.uint32) | (single != array)).view(np.float32)
    return odd.astype(dtype)


def is_narrow(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype has 16 bits; kernels compute those in float32."""
    return dtype.itemsize == 2


def check_dtype(name: str, array: Array) -> np.dtype[Any]:
    """The dtype of an array, as the object of `supported`; TypeError if it is not supported."""
    dtype = array.dtype
    known = supported(dtype)
    if known is not None:
        return known
    given = dtype_name(dtype)
    if not dtype.isnative:
        raise TypeError(
            f"{name} has dtype {given}, which is not this machine's byte order; "
            f"expected {SUPPORTED}"
        )
    # What numpy.savez makes of bfloat16.
    raw = f" (bfloat16 stored as raw bytes? pass {name}.view(ml_dtypes.bfloat16))"
    hint = raw if dtype == np.dtype("V2") else ""
    raise TypeError(f"{name} has dtype {given}; expected {SUPPORTED}{hint}")


def check_same_dtype(
    name: str, array: Array, expected: np.dtype[Any], other: str, *, or_float32: bool = False
) -> None:
    """Check that an array has a dtype; or_float32: accept float32, too, if that has 16 bits."""
    dtype = check_dtype(name, array)
    wide = or_float32 and is_narrow(expected)
    if dtype == expected or (wide and dtype is FLOAT32):
        return
    raise TypeError(
        f"{name} has dtype {dtype_name(array.dtype)}; expected {expected.name}"
        f"{' or float32' if wide else ''} to match {other}"
    )
