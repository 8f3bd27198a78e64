"""The libraries of GPU arrays, torch and CuPy, which are recognised without importing them.

Library lists the functions that ffncore needs; _Torch and _CuPy implement them. Work is queued on
the library's current stream, and memory comes from its allocator, which knows that stream, so that
nothing here waits for the GPU. CuPy runs a function on its current device even if the arrays are
on another one, so its functions are called with the device of the array as the current one.
bfloat16 needs ml_dtypes. Tests: tests/backends/test_device.py, tests/backends/test_device_calls.py.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, Protocol

import numpy as np

from .dtypes import as_dtype

# Wider ids are clipped before they become int32, so that none wraps around to a valid id.
_LEAST, _MOST = -1, 2**31 - 1


class Library(Protocol):
    """The functions that ffncore needs of an array library."""

    noun: str  # for error messages
    array: type  # the class of its arrays

    def device(self, name: str, array: Any) -> int: ...
    def describe(self, array: Any) -> tuple[int, tuple[int, ...], tuple[int, ...], str]:
        """Return address, shape, strides in bytes, and the name of the dtype."""

    def view(self, array: Any) -> Any:
        """Return another array object for the same memory, which keeps the memory alive."""

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any: ...
    def zeros(self, shape: tuple[int, ...], dtype: str, device: int) -> Any: ...
    def contiguous(self, array: Any) -> Any: ...
    def copy(self, array: Any) -> Any: ...
    def as_int32(self, array: Any) -> Any:
        """Return int32, C-contiguous; a number that does not fit becomes one that no expert has."""

    def write(self, array: Any, values: Any) -> None: ...
    def sum(self, array: Any, number: Any) -> Any: ...
    def counts(self, ids: Any, end: int) -> Any:
        """Return how often each of 0 ... end - 1 occurs in ids, int64."""

    def by_id(self, rows: Any, ids: Any, end: int) -> Any:
        """Undo a stable sort by id: return the row of each id, 0 for ids outside 0 ... end - 1."""

    def stream(self, device: int) -> int: ...


@functools.cache
def _torch_name(dtype: Any) -> str:
    return str(dtype).rpartition(".")[2]


class _Torch:
    noun = "torch tensor"

    def __init__(self) -> None:
        self._torch: Any = importlib.import_module("torch")
        self.array: type = self._torch.Tensor

    def device(self, name: str, array: Any) -> int:
        if not array.is_cuda:
            number = f"{name}.detach().numpy()"
            if _torch_name(array.dtype) == "bfloat16":  # torch's numpy() refuses bfloat16
                number = f"{name}.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)"
            raise TypeError(
                f"{name} is a torch tensor on {array.device}; expected a numpy array (pass "
                f"{number}), or a tensor on a CUDA device"
            )
        if array.requires_grad and self._torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires grad, which ffncore does not record; expected {name}.detach(), "
                f"or a call under torch.no_grad()"
            )
        return int(array.device.index)

    def describe(self, array: Any) -> tuple[int, tuple[int, ...], tuple[int, ...], str]:
        size = array.element_size()
        strides = tuple([stride * size for stride in array.stride()])
        return array.data_ptr(), tuple(array.shape), strides, _torch_name(array.dtype)

    def view(self, array: Any) -> Any:
        return array.detach()

    def _make(self, make: Any, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        return make(shape, dtype=getattr(self._torch, dtype), device=f"cuda:{device}")

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        return self._make(self._torch.empty, shape, dtype, device)

    def zeros(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        return self._make(self._torch.zeros, shape, dtype, device)

    def contiguous(self, array: Any) -> Any:
        return array.contiguous()

    def copy(self, array: Any) -> Any:
        return array.clone()

    def as_int32(self, array: Any) -> Any:
        if array.element_size() >= 4 and array.dtype != self._torch.int32:
            array = array.to(self._torch.int64).clamp(_LEAST, _MOST)
        return array.to(self._torch.int32).contiguous()

    def write(self, array: Any, values: Any) -> None:
        array.copy_(values)

    def sum(self, array: Any, number: Any) -> Any:
        return array + number

    def counts(self, ids: Any, end: int) -> Any:
        # torch.bincount would wait for the GPU, because it needs the largest entry.
        index = self._torch.where((ids < 0) | (ids >= end), end, ids).to(self._torch.int64)
        device = int(ids.device.index)
        bins = self.zeros((end + 1,), "int64", device)
        return bins.scatter_add_(0, index, self._torch.ones_like(index))[:end]

    def by_id(self, rows: Any, ids: Any, end: int) -> Any:
        absent = (ids < 0) | (ids >= end)
        order = self._torch.argsort(self._torch.where(absent, end, ids), stable=True)
        return rows[self._torch.argsort(order)].masked_fill_(absent.reshape(-1, 1), 0)

    def stream(self, device: int) -> int:
        return int(self._torch.cuda.current_stream(device).cuda_stream)


class _CuPy:
    noun = "CuPy array"

    def __init__(self) -> None:
        self._cupy: Any = importlib.import_module("cupy")
        self.array: type = self._cupy.ndarray

    def device(self, name: str, array: Any) -> int:  # noqa: ARG002 (torch needs it)
        return int(array.device.id)

    def describe(self, array: Any) -> tuple[int, tuple[int, ...], tuple[int, ...], str]:
        return array.data.ptr, tuple(array.shape), tuple(array.strides), name_of(array.dtype)

    def view(self, array: Any) -> Any:
        return array.view()

    def _on(self, array: Any) -> Any:
        return self._cupy.cuda.Device(array.device.id)

    def _make(self, make: Any, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        with self._cupy.cuda.Device(device):
            return make(shape, dtype=numpy_dtype(dtype))

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        return self._make(self._cupy.empty, shape, dtype, device)

    def zeros(self, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        return self._make(self._cupy.zeros, shape, dtype, device)

    def contiguous(self, array: Any) -> Any:
        with self._on(array):
            return self._cupy.ascontiguousarray(array)

    def copy(self, array: Any) -> Any:
        with self._on(array):
            return array.copy()

    def as_int32(self, array: Any) -> Any:
        with self._on(array):
            if array.itemsize >= 4 and array.dtype != np.int32:
                array = array.astype(np.int64).clip(_LEAST, _MOST)
            return self._cupy.ascontiguousarray(array, dtype=np.int32)

    def write(self, array: Any, values: Any) -> None:
        with self._on(array):
            array[...] = values

    def sum(self, array: Any, number: Any) -> Any:
        with self._on(array):
            return array + number

    def counts(self, ids: Any, end: int) -> Any:
        # cupy.bincount would wait for the GPU, because it needs the largest entry.
        with self._on(ids):
            ends = self._cupy.arange(end + 1, dtype=np.int32)
            edges = self._cupy.searchsorted(self._cupy.sort(ids), ends)
            return edges[1:] - edges[:-1]

    def by_id(self, rows: Any, ids: Any, end: int) -> Any:
        with self._on(ids):
            absent = (ids < 0) | (ids >= end)
            # CuPy's sorts are stable; not all releases accept the argument kind.
            order = self._cupy.argsort(self._cupy.where(absent, end, ids))
            # The rows are moved as integers, because not all functions of CuPy accept bfloat16.
            bits = rows.view(np.dtype(f"u{rows.itemsize}"))[self._cupy.argsort(order)]
            return self._cupy.where(absent.reshape(-1, 1), 0, bits).view(rows.dtype)

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
            library = _library(name)
            return library if issubclass(kind, library.array) else None
    return None


def library_of(value: object) -> Library | None:
    """The library of a torch tensor or CuPy array; None for every other value."""
    kind: Any = type(value)
    return None if kind is np.ndarray else _library_of_type(kind)


@functools.cache
def name_of(dtype: np.dtype[Any]) -> str:
    """dtype.name, cached because numpy computes it anew, which takes microseconds."""
    return str(dtype.name)


@functools.cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    return as_dtype("dtype", name) if name == "bfloat16" else np.dtype(name)
