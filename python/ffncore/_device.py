"""Arrays on a GPU: whose they are, where they lie, and new ones from their own library.

    torch tensors on a CUDA device, CuPy arrays    recognised by their type's module, not imported

An array is looked at through its ghost: a numpy array with its address, shape, strides and dtype,
which is never read or written. So everything that checks arguments, shapes and overlaps
(_arrays.py) works as it does for numpy, with the same sentences. What a call computes with is of
one library and one device: its place.

The stream is the library's current one, memory comes from its allocator, which knows that stream:
nothing here waits for the device. CuPy's functions run on its current device, whatever device their
arrays are on: so each of them runs inside its array's. bfloat16 needs ml_dtypes, as everywhere in
numpy. Tests: tests/test_device.py, tests/test_device_errors.py, tests/test_device_calls.py.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np

from ._arrays import ALIGNED, Array, as_dtype
from ._rows import merges, row_count

# Expert ids are int32: what is wider is brought into its range, so that none wraps to a valid one.
_LEAST, _MOST = -1, 2**31 - 1


class Library(Protocol):
    """What is asked of an array library."""

    noun: str  # in sentences
    array: type  # of its arrays

    def device(self, name: str, array: Any) -> int: ...
    def describe(self, array: Any) -> tuple[int, tuple[int, ...], tuple[int, ...], str]:
        """Address, shape, strides in bytes, name of the dtype."""

    def view(self, array: Any) -> Any:
        """Another object of the same memory, which keeps that memory."""

    def empty(self, shape: tuple[int, ...], dtype: str, device: int) -> Any: ...
    def zeros(self, shape: tuple[int, ...], dtype: str, device: int) -> Any: ...
    def contiguous(self, array: Any) -> Any: ...
    def copy(self, array: Any) -> Any: ...
    def as_int32(self, array: Any) -> Any:
        """C-contiguous; what int32 cannot hold stays an id that does not exist."""

    def write(self, array: Any, values: Any) -> None: ...
    def sum(self, array: Any, number: Any) -> Any: ...
    def counts(self, ids: Any, end: int) -> Any:
        """How often each of 0 ... end - 1 is there, int64."""

    def by_id(self, rows: Any, ids: Any, end: int) -> Any:
        """A row for each id, where rows are in a stable order of ids; outside 0 ... end - 1, 0."""

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
            if _torch_name(array.dtype) == "bfloat16":  # which numpy has by way of its bits alone
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
        # torch.bincount waits for the largest entry.
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

    def device(self, name: str, array: Any) -> int:  # noqa: ARG002 (of torch)
        return int(array.device.id)

    def describe(self, array: Any) -> tuple[int, tuple[int, ...], tuple[int, ...], str]:
        return array.data.ptr, tuple(array.shape), tuple(array.strides), name_of(array.dtype)

    def view(self, array: Any) -> Any:
        return array.view()

    def _on(self, array: Any) -> Any:
        return self._cupy.cuda.Device(array.device.id)

    def _make(self, make: Any, shape: tuple[int, ...], dtype: str, device: int) -> Any:
        with self._cupy.cuda.Device(device):
            return make(shape, dtype=_numpy_dtype(dtype))

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
        # cupy.bincount waits for the largest entry.
        with self._on(ids):
            ends = self._cupy.arange(end + 1, dtype=np.int32)
            edges = self._cupy.searchsorted(self._cupy.sort(ids), ends)
            return edges[1:] - edges[:-1]

    def by_id(self, rows: Any, ids: Any, end: int) -> Any:
        with self._on(ids):
            absent = (ids < 0) | (ids >= end)
            # CuPy's sorts are stable, and take no kind in all of its releases.
            order = self._cupy.argsort(self._cupy.where(absent, end, ids))
            # As integers, which every function of CuPy's takes, unlike bfloat16.
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


@functools.cache
def _type_string(dtype: np.dtype[Any]) -> str:
    """Integers of its size stand for a dtype that is not numpy's own, as those of ml_dtypes."""
    return dtype.str if dtype.isbuiltin == 1 else f"=u{dtype.itemsize}"


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
        if library is not self.library or library.device(name, array) != self.device:
            self._refuse(name, array, library)
        return self._look(name, array)

    def _refuse(self, name: str, array: Any, library: Library | None) -> NoReturn:
        expected = f"expected {self}, as the other arrays"
        if library is None:
            given = "a numpy array" if isinstance(array, np.ndarray) else f"of type {_type(array)}"
            raise TypeError(f"{name} is {given}; {expected}{_hint(array)}")
        error = TypeError if library is not self.library else ValueError
        raise error(f"{name} is {Place(library, library.device(name, array))}; {expected}")

    def _look(self, name: str, array: Any) -> Array:
        address, shape, strides, dtype_name = self.library.describe(array)
        try:
            dtype = _numpy_dtype(dtype_name)
        except TypeError:
            if dtype_name == "bfloat16":
                raise TypeError(
                    f"{name} has dtype bfloat16, which numpy knows once ml_dtypes is installed; "
                    f"expected that, or another dtype"
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
                f"expected whole elements, of {dtype.itemsize} bytes"
            )
        return seen

    def make(self, shape: tuple[int, ...], dtype: np.dtype[Any], *, zero: bool = False) -> Made:
        make = self.library.zeros if zero else self.library.empty
        array = make(tuple(shape), name_of(dtype), self.device)
        return Made(array, self._look("a new array", array))

    def rows(self, array: Any, ghost: Array) -> Made:
        """[..., d] as [T, d]: a view, or where strides do not allow that, a copy."""
        if ghost.ndim == 2:
            return Made(array, ghost)
        shape = (row_count(ghost.shape), ghost.shape[-1])
        if merges(ghost):
            return Made(array, ghost.reshape(shape))
        copy, seen = self.copy(array)
        return Made(copy, seen.reshape(shape))

    def copy(self, array: Any) -> Made:
        """C-contiguous; of an array that is not."""
        copy = self.library.contiguous(array)
        return Made(copy, self._look("a copy", copy))


class Made(NamedTuple):
    """An array and its ghost."""

    array: Any
    ghost: Array


def _type(value: object) -> str:
    return type(value).__name__


# Of DLPack: kDLCUDA, kDLCUDAManaged.
_CUDA_DEVICES = (2, 13)


def _hint(value: Any) -> str:
    """Arrays of another library, of a GPU, can be taken over without a copy."""
    try:
        on_gpu = value.__dlpack_device__()[0] in _CUDA_DEVICES
    except Exception:  # whatever it is that cannot tell: then there is no hint
        return ""
    return " (torch.from_dlpack and cupy.from_dlpack make one of it without a copy)" * on_gpu


def place_of(name: str, array: Any) -> Place | None:
    """Where an array of a GPU is; None: it is none."""
    library = library_of(array)
    if library is not None:
        return Place(library, library.device(name, array))
    if type(array) is not np.ndarray:
        no_gpu_array(name, array)
    return None


def no_gpu_array(name: str, value: Any) -> None:
    """Raises for arrays of a GPU that no library above has."""
    hint = _hint(value)
    if hint:
        raise TypeError(
            f"{name} is of type {_type(value)}, on a CUDA device; expected a torch tensor, a CuPy "
            f"array or a numpy array{hint}"
        )
