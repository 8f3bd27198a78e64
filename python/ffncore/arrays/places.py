"""Places: where the arrays of a call are, in the memory of the CPU or on a GPU.

The place of numpy arrays is None. That of torch CUDA tensors and CuPy arrays is a Place: their
library and the number of the device.

For checks, an array on a GPU is represented by its ghost: a numpy array with the same address,
shape, strides and dtype, whose elements are never read or written. So the same functions check the
shapes, dtypes and overlaps of all arrays, with the same error messages.
Tests: tests/backends/test_device.py, tests/backends/test_device_errors.py.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .libraries import Library, library_of, name_of, numpy_dtype
from .rows import merges, row_count
from .shapes import ALIGNED, Array, as_array


@functools.cache
def _type_string(dtype: np.dtype[Any]) -> str:
    """The typestr of __array_interface__; for a dtype of ml_dtypes, that of an integer."""
    return dtype.str if dtype.isbuiltin == 1 else f"=u{dtype.itemsize}"


class _Address:
    """An object that np.asarray turns into an array, by its __array_interface__."""

    def __init__(
        self, shape: tuple[int, ...], typestr: str, address: int, strides: tuple[int, ...]
    ) -> None:
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": typestr,
            "data": (address, False),
            "strides": strides,
        }


class Place(NamedTuple):
    """A library and the number of a CUDA device."""

    library: Library
    device: int

    def __str__(self) -> str:
        return f"a {self.library.noun} on cuda:{self.device}"

    def ghost(self, name: str, array: Any) -> Array:
        """The ghost of an array. Raises TypeError or ValueError if the array is elsewhere."""
        library = library_of(array)
        if library is not self.library or library.device(name, array) != self.device:
            self._refuse(name, array, library)
        return self._look(name, array)

    def _refuse(self, name: str, array: Any, library: Library | None) -> NoReturn:
        expected = f"expected {self}, as the other arrays are"
        if library is None:
            given = "a numpy array" if isinstance(array, np.ndarray) else f"of type {_type(array)}"
            raise TypeError(f"{name} is {given}; {expected}{_hint(array)}")
        error = TypeError if library is not self.library else ValueError
        raise error(f"{name} is {Place(library, library.device(name, array))}; {expected}")

    def _look(self, name: str, array: Any) -> Array:
        address, shape, strides, dtype_name = self.library.describe(array)
        try:
            dtype = numpy_dtype(dtype_name)
        except TypeError:
            if dtype_name == "bfloat16":
                raise TypeError(
                    f"{name} has dtype bfloat16, for which numpy needs ml_dtypes; expected "
                    f"ml_dtypes to be installed, or another dtype"
                ) from None
            raise TypeError(
                f"{name} has dtype {dtype_name}; expected float32, bfloat16 or float16"
            ) from None
        if 0 in shape:
            return np.empty(shape, dtype)
        seen = np.asarray(_Address(shape, _type_string(dtype), address, strides))
        if seen.dtype is not dtype:
            seen = seen.view(dtype)
        if not seen.flags.num & ALIGNED:
            raise ValueError(
                f"{name} has strides of {strides} bytes at address {address:#x}; "
                f"expected multiples of an element's {dtype.itemsize} bytes"
            )
        return seen

    def make(self, shape: tuple[int, ...], dtype: np.dtype[Any], *, zero: bool = False) -> Made:
        make = self.library.zeros if zero else self.library.empty
        array = make(tuple(shape), name_of(dtype), self.device)
        return Made(array, self._look("a new array", array))

    def rows(self, array: Any, ghost: Array) -> Made:
        """[..., d] as [T, d]: a view, or a copy if the strides do not allow a view."""
        if ghost.ndim == 2:
            return Made(array, ghost)
        shape = (row_count(ghost.shape), ghost.shape[-1])
        if merges(ghost):
            return Made(array, ghost.reshape(shape))
        copy, seen = self.copy(array)
        return Made(copy, seen.reshape(shape))

    def copy(self, array: Any) -> Made:
        """A C-contiguous copy of an array that is not C-contiguous."""
        copy = self.library.contiguous(array)
        return Made(copy, self._look("a copy", copy))


class Made(NamedTuple):
    """An array and its ghost."""

    array: Any
    ghost: Array


def _type(value: object) -> str:
    return type(value).__name__


# The numbers of kDLCUDA and kDLCUDAManaged in DLPack.
_CUDA_DEVICES = (2, 13)


def _hint(value: Any) -> str:
    """A hint for GPU arrays of other libraries, which can be used without a copy; else ""."""
    try:
        on_gpu = value.__dlpack_device__()[0] in _CUDA_DEVICES
    except Exception:  # whatever the object raises: it gets no hint
        return ""
    return " (torch.from_dlpack and cupy.from_dlpack make one of it without a copy)" * on_gpu


def place_of(name: str, array: Any) -> Place | None:
    """The place of an array on a GPU; None for every other value."""
    library = library_of(array)
    if library is not None:
        return Place(library, library.device(name, array))
    if type(array) is not np.ndarray:
        no_gpu_array(name, array)
    return None


def no_gpu_array(name: str, value: Any) -> None:
    """Raise TypeError for arrays on a GPU of a library other than torch and CuPy."""
    hint = _hint(value)
    if hint:
        raise TypeError(
            f"{name} is of type {_type(value)}, on a CUDA device; expected a torch tensor, a CuPy "
            f"array or a numpy array{hint}"
        )


def see(place: Place | None, name: str, value: Any) -> Array:
    """An argument as checks see it: the numpy array itself, or the ghost of one on a GPU."""
    if place is not None:
        return place.ghost(name, value)
    found = place_of(name, value)
    if found is not None:
        raise TypeError(f"{name} is {found}; expected a numpy array, as the other arrays")
    return as_array(name, value)
