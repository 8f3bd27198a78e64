"""Arrays on a GPU: whose they are, where they lie, and new ones from their own library.

    torch tensors on a CUDA device, CuPy arrays    recognised by their type's module, not imported

An array is looked at through its ghost: a numpy array with its address, shape, strides and dtype,
which is never read or written. So everything that checks arguments, shapes and overlaps
(_arrays.py) works as it does for numpy, with the same sentences. What a call computes with is of
one library and one device: its place.

The stream is the library's current one, memory comes from its allocator, which knows that stream:
nothing here waits for the device. bfloat16 needs ml_dtypes, as everywhere in numpy.
Tests: tests/test_device.py, tests/test_device_errors.py.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, NamedTuple, Protocol

import numpy as np

from ._arrays import Array, as_dtype
from ._rows import merges, row_count


class Library(Protocol):
    """What is asked of an array library."""

    noun: str  # in sentences

    def device(self, name: str, array: Any) -> int: ...
    def describe(self, array: Any) -> tuple[int, tuple[int, ...], tuple[int, ...], str]:
        """Address, shape, strides in elements, name of the dtype."""

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any: ...
    def zeros(self, shape: tuple[int, ...], dtype: str, device: int) -> Any: ...
    def contiguous(self, array: Any) -> Any: ...
    def as_int32(self, array: Any) -> Any: ...
    def ranks(self, ids: Any, end: int) -> Any:
        """Of each entry, its place in a stable order; entries outside 0 ... end - 1 come last."""

    def counts(self, ids: Any, end: int) -> Any:
        """How often each of 0 ... end - 1 is there, int64."""

    def stream(self, device: int) -> int: ...


class _Torch:
    noun = "torch tensor"

    def __init__(self) -> None:
        self._torch: Any = importlib.import_module("torch")

    def device(self, name: str, array: Any) -> int:
        if array.device.type != "cuda":
            raise TypeError(
                f"{name} is a torch tensor on {array.device}; expected one on a CUDA device, "
                f"or a numpy array"
            )
        if array.requires_grad and self._torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires grad, which ffncore does not record; expected {name}.detach(), "
                f"or a call under torch.no_grad()"
            )
        return int(array.device.index)

    def describe(self, array: Any) -> tuple[int, tuple[int, ...], tuple[int, ...], str]:
        dtype = str(array.dtype).rpartition(".")[2]
        return array.data_ptr(), tuple(array.shape), tuple(array.stride()), dtype

    def _make(self, make: Any, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        return make(shape, dtype=getattr(self._torch, dtype), device=f"cuda:{device}")

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        return self._make(self._torch.empty, shape, dtype, device)

    def zeros(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        return self._make(self._torch.zeros, shape, dtype, device)

    def contiguous(self, array: Any) -> Any:
        return array.contiguous()

    def as_int32(self, array: Any) -> Any:
        return array.to(self._torch.int32).contiguous()

    def ranks(self, ids: Any, end: int) -> Any:
        keys = self._torch.where((ids >= 0) & (ids < end), ids, end)
        order = self._torch.argsort(keys, stable=True)
        return self._torch.argsort(order)

    def counts(self, ids: Any, end: int) -> Any:
        return self._torch.bincount(ids.clip(-1, end) + 1, minlength=end + 2)[1 : end + 1]

    def stream(self, device: int) -> int:
        return int(self._torch.cuda.current_stream(device).cuda_stream)


class _CuPy:
    noun = "CuPy array"

    def __init__(self) -> None:
        self._cupy: Any = importlib.import_module("cupy")

    def device(self, name: str, array: Any) -> int:  # noqa: ARG002 (of torch)
        return int(array.device.id)

    def describe(self, array: Any) -> tuple[int, tuple[int, ...], tuple[int, ...], str]:
        strides = tuple(stride // array.itemsize for stride in array.strides)
        return array.data.ptr, tuple(array.shape), strides, array.dtype.name

    def _make(self, make: Any, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        with self._cupy.cuda.Device(device):
            return make(shape, dtype=_numpy_dtype(dtype))

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        return self._make(self._cupy.empty, shape, dtype, device)

    def zeros(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        return self._make(self._cupy.zeros, shape, dtype, device)

    def contiguous(self, array: Any) -> Any:
        with self._cupy.cuda.Device(array.device.id):
            return self._cupy.ascontiguousarray(array)

    def as_int32(self, array: Any) -> Any:
        with self._cupy.cuda.Device(array.device.id):
            return self._cupy.ascontiguousarray(array, dtype=np.int32)

    def ranks(self, ids: Any, end: int) -> Any:
        with self._cupy.cuda.Device(ids.device.id):
            keys = self._cupy.where((ids >= 0) & (ids < end), ids, end)
            order = self._cupy.argsort(keys, kind="stable")
            return self._cupy.argsort(order)

    def counts(self, ids: Any, end: int) -> Any:
        with self._cupy.cuda.Device(ids.device.id):
            shifted = ids.clip(-1, end) + 1
            return self._cupy.bincount(shifted, minlength=end + 2)[1 : end + 1]

    def stream(self, device: int) -> int:
        with self._cupy.cuda.Device(device):
            return int(self._cupy.cuda.get_current_stream().ptr)


_LIBRARIES: dict[str, type[_Torch] | type[_CuPy]] = {"torch": _Torch, "cupy": _CuPy}


@functools.cache
def _library(name: str) -> Library:
    return _LIBRARIES[name]()


@functools.lru_cache(maxsize=256)
def _library_of_type(kind: type) -> Library | None:
    for base in kind.__mro__:
        name = base.__module__.partition(".")[0]
        if name in _LIBRARIES:
            return _library(name)
    return None


def library_of(value: object) -> Library | None:
    """The library of an array that may be on a GPU; None: of numpy, or no array."""
    kind: Any = type(value)
    return None if kind is np.ndarray else _library_of_type(kind)


@functools.cache
def name_of(dtype: np.dtype[Any]) -> str:
    """dtype.name, which numpy takes microseconds for."""
    return str(dtype.name)


@functools.cache
def _numpy_dtype(name: str) -> np.dtype[Any]:
    return as_dtype("dtype", name) if name == "bfloat16" else np.dtype(name)


class _Address:
    """numpy takes arrays from anything that has this attribute."""

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
        """array as checks see it; raises where it is not of this place."""
        library = library_of(array)
        if library is None:
            given = "a numpy array" if isinstance(array, np.ndarray) else f"of type {_type(array)}"
            raise TypeError(
                f"{name} is {given}; expected {self}, as the other arrays{_hint(array)}"
            )
        here = Place(library, library.device(name, array))
        if here != self:
            error = TypeError if library is not self.library else ValueError
            raise error(f"{name} is {here}; expected {self}, as the other arrays")
        address, shape, strides, dtype_name = library.describe(array)
        try:
            dtype = _numpy_dtype(dtype_name)
        except TypeError:
            if dtype_name == "bfloat16":
                raise
            raise TypeError(
                f"{name} has dtype {dtype_name}; expected float32, bfloat16 or float16"
            ) from None
        if 0 in shape:
            return np.empty(shape, dtype)
        strides = tuple(stride * dtype.itemsize for stride in strides)
        if dtype_name != "bfloat16":
            return np.asarray(_Address(shape, dtype.str, address, strides))
        return np.asarray(_Address(shape, "<u2", address, strides)).view(dtype)

    def make(self, shape: tuple[int, ...], dtype: np.dtype[Any], *, zero: bool = False) -> Made:
        make = self.library.zeros if zero else self.library.empty
        array = make(tuple(shape), name_of(dtype), self.device)
        return Made(array, self.ghost("a new array", array))

    def rows(self, array: Any, ghost: Array) -> Made:
        """[..., d] as [T, d]: a view, or where strides do not allow that, a copy."""
        shape = (row_count(ghost.shape), ghost.shape[-1])
        if merges(ghost):
            return Made(array, ghost.reshape(shape))
        copy = self.library.contiguous(array)
        return Made(copy, self.ghost("a copy", copy).reshape(shape))


class Made(NamedTuple):
    """An array and its ghost."""

    array: Any
    ghost: Array


def _type(value: object) -> str:
    return type(value).__name__


def _hint(value: Any) -> str:
    """Arrays of another library, of a GPU, can be taken over without a copy."""
    cuda = 2  # kDLCUDA
    try:
        if value.__dlpack_device__()[0] == cuda:
            return " (torch.from_dlpack and cupy.from_dlpack make them of it without a copy)"
    except AttributeError:
        pass
    return ""


def place_of(name: str, array: Any) -> Place | None:
    """Where an array of a GPU is; None: it is none."""
    library = library_of(array)
    return None if library is None else Place(library, library.device(name, array))


def no_gpu_array(name: str, value: Any) -> None:
    """Raises for arrays of a GPU that no library above has."""
    hint = _hint(value)
    if hint:
        raise TypeError(
            f"{name} is of type {_type(value)}, on a CUDA device; expected a torch tensor, a CuPy "
            f"array or a numpy array{hint}"
        )
