"""What an argument may be (dtype, rank, shape, strides, out=, overlap), and the sentences about it.

An error is one sentence that names the argument, what was given and what was expected; ValueError
for shapes and values, TypeError for types and dtypes. Everything is checked before any work.

Inputs may have any strides (negative, zero, transposed): the kernels take them as they are. Only an
array whose elements are not aligned (a field of a packed structure) is copied first. Outputs may
have any strides too, as long as no two of their elements share memory. How leading dimensions
become rows: _rows.py.

Tests: tests/test_errors.py, tests/test_type_errors.py, tests/test_strides.py, tests/test_ranges.py.
"""

from __future__ import annotations

import difflib
import math
import mmap
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
MaybeArray: TypeAlias = Array | None

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)
FLOAT16 = np.dtype(np.float16)
SUPPORTED = "float32, float64, bfloat16 or float16"

# numpy's NPY_ARRAY_ALIGNED bit of ndarray.flags.num. For our dtypes on the platforms that we build
# for it also means: every stride that is ever stepped is a whole number of elements.
ALIGNED = 0x0100

# C-contiguous (so that no two elements share memory), aligned, writable.
SIMPLE_OUT = 0x0001 | ALIGNED | 0x0400

# The array has memory of its own, from numpy: it overlaps its own views and nothing else.
OWNS = 0x0004

# No array of a call may exceed this many elements. Byte counts of two such arrays, padded to
# panels, then still fit into 63 bits (2^57 elements x 8 bytes x 2 = 2^61).
MAX_ELEMENTS = 2**57

# Work that np.shares_memory may spend on one pair before we call it an overlap. Two-dimensional
# arrays need a few hundred steps at most; only contrived strides in many dimensions need more.
OVERLAP_WORK = 100_000


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    if close:
        return f"the nearest known name is {close[0]!r}"
    return "known are " + ", ".join(names)


def dtype_name(dtype: np.dtype[Any]) -> str:
    """float32, but also >f4 where the byte order is the point."""
    return str(dtype.name) if dtype.isnative else dtype.str


def as_array(name: str, value: object) -> Array:
    """value itself if it is a plain numpy array, its base view if it is of a harmless subclass."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; expected a plain numpy array (fill it first)")
    if isinstance(value, np.ndarray):
        return value.view(np.ndarray)
    raise TypeError(f"{name} is of type {type(value).__name__}; expected a numpy array")


def supported(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    """The one dtype object that is compared, or None; in this machine's byte order.

    bfloat16 belongs to ml_dtypes, which we recognise without importing it.
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
    """A dtype, or what numpy takes for one; "bfloat16" imports ml_dtypes where it has to."""
    try:
        dtype = np.dtype(value)  # type: ignore[call-overload]
    except TypeError:
        if value != "bfloat16":
            raise TypeError(f"{name} is {value!r}; expected {SUPPORTED}") from None
        try:
            from ml_dtypes import bfloat16
        except ImportError:
            raise TypeError(
                f"{name} is 'bfloat16', which numpy knows once ml_dtypes is installed; "
                f"expected that, or another dtype"
            ) from None
        dtype = np.dtype(bfloat16)
    known = supported(dtype)
    if known is None:
        raise TypeError(f"{name} is {dtype_name(dtype)}; expected {SUPPORTED}")
    return known


def _range(mantissa: int, exponent: int) -> tuple[float, float]:
    """The largest number, and the least that rounds to infinity: half a step above it."""
    return (2 - 2.0**-mantissa) * 2.0**exponent, (2 - 2.0 ** -(mantissa + 1)) * 2.0**exponent


# All but float64, in which every number has a place.
_RANGES = {"float32": _range(23, 127), "bfloat16": _range(7, 127), "float16": _range(10, 15)}


def check_range(name: str, array: Array, dtype: np.dtype[Any]) -> None:
    """No finite number of the array may become infinite in dtype."""
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
    """The entry of the largest magnitude; infinity or NaN where there is one."""
    # Among numbers of one sign bits are in the order of magnitudes, NaN last; and numpy compares
    # integers up to a hundred times as fast as 16-bit floats.
    bits = (array.view(f"{kind}{array.itemsize}").max() for kind in "iu")
    return max((float(b.view(array.dtype)) for b in bits), key=lambda x: (math.isnan(x), abs(x)))


def converted(array: Array, dtype: np.dtype[Any], name: str) -> Array:
    """array.astype(dtype), each number rounded once; ValueError where one would become infinite."""
    check_range(name, array, dtype)
    return rounded(array, dtype)


def rounded(array: Array, dtype: np.dtype[Any]) -> Array:
    """Of an array whose range was checked."""
    if array.dtype != FLOAT64 or dtype.name != "bfloat16":
        return array.astype(dtype, copy=False)
    # ml_dtypes goes by way of float32: two roundings. Rounded towards zero first, with an odd last
    # bit wherever something is left out, float32 still tells which side of a tie a number is on.
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    beyond = np.abs(single) > np.abs(array)
    single = np.where(beyond, np.nextafter(single, np.float32(0)), single)
    odd: Array = (single.view(np.uint32) | (single != array)).view(np.float32)
    return odd.astype(dtype)


def is_narrow(dtype: np.dtype[Any]) -> bool:
    """Of 16 bits: computed with in float32."""
    return dtype.itemsize == 2


def check_dtype(name: str, array: Array) -> np.dtype[Any]:
    """A supported dtype, as the one object that is compared."""
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
    raise TypeError(f"{name} has dtype {given}; expected {SUPPORTED}")


def check_same_dtype(
    name: str, array: Array, expected: np.dtype[Any], other: str, *, or_float32: bool = False
) -> None:
    """or_float32: float32 beside 16 bits will do, too."""
    dtype = check_dtype(name, array)
    wide = or_float32 and is_narrow(expected)
    if dtype == expected or (wide and dtype is FLOAT32):
        return
    raise TypeError(
        f"{name} has dtype {dtype_name(array.dtype)}; expected {expected.name}"
        f"{' or float32' if wide else ''} to match {other}"
    )


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


def check_size(rows: int, columns: int, what: str) -> None:
    """rows x columns elements must be countable, padding included; `what` names the two."""
    if rows * columns > MAX_ELEMENTS:
        raise ValueError(
            f"{what} make {rows} x {columns} elements; expected at most {MAX_ELEMENTS} in one array"
        )


def aligned(array: Array) -> Array:
    """The array, or a copy where its elements are not aligned."""
    return array if array.flags.num & ALIGNED else np.array(array, order="C", copy=True)


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


def check_names(argument: str, names: object, known: tuple[str, ...]) -> tuple[str, ...]:
    """A tuple of known names, for needs=."""
    if isinstance(names, str) or not hasattr(names, "__iter__"):
        raise TypeError(
            f"{argument} is of type {type(names).__name__}; expected a tuple of names like ('x',)"
        )
    checked = tuple(names)
    for name in checked:
        if not isinstance(name, str):
            raise TypeError(
                f"{argument} has an entry of type {type(name).__name__}; expected a name"
            )
        if name not in known:
            raise ValueError(f"{argument} has {name!r}, which is not known; {nearest(name, known)}")
    return checked
