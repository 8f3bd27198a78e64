"""The shared library libffncore_cuda.so, through cffi: its structs, its functions and its errors.

It is opened by the first call. cffi reads the declarations from ffncore.h and ffncore_cuda.h, which
are in the package. A struct only holds addresses, so that its user has to keep the arrays alive
until the call has returned. Tests: tests/backends/test_device.py,
tests/backends/test_device_errors.py.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ...arrays.libraries import name_of
from ...arrays.places import Place
from ...arrays.shapes import Array, MaybeArray
from ...values.weights import NAMES

PACKAGE = Path(__file__).parents[2]
LIBRARY = PACKAGE / "libffncore_cuda.so"


# The numbers of the enum ffncore_dtype in ffncore.h.
_CODES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}


@functools.cache
def _types(ffi: Any, kind: str) -> tuple[Any, int]:
    """The type of pointers to a struct, and its size; cached, because cffi parses names anew."""
    return ffi.typeof(f"ffncore_{kind} *"), ffi.sizeof(f"ffncore_{kind}")


class Cuda(NamedTuple):
    """The opened library, and functions that fill its structs."""

    ffi: Any
    lib: Any

    def check(self, status: int) -> None:
        if status != self.lib.FFNCORE_OK:
            self.fail(status)

    def fail(self, status: int) -> NoReturn:
        errors = {
            self.lib.FFNCORE_INVALID_ARGUMENT: ValueError,
            self.lib.FFNCORE_OUT_OF_MEMORY: MemoryError,
        }
        sentence = self.ffi.string(self.lib.ffncore_cuda_last_error()).decode()
        raise errors.get(status, RuntimeError)(sentence)

    def struct(self, kind: str, /, **fields: Any) -> Any:
        """A new struct with its size; fields that are not passed are 0."""
        pointer, size = _types(self.ffi, kind)
        made = self.ffi.new(pointer)
        made.size = size
        for name, value in fields.items():
            setattr(made, name, value)
        return made

    def call(self, place: Place) -> Any:
        """The struct with the device and the current stream of a call, without workspace yet."""
        stream = self.ffi.cast("void *", place.library.stream(place.device))
        return self.struct("cuda_call", stream=stream, device=place.device)

    def address(self, array: MaybeArray, kind: str = "void *") -> Any:
        if array is None:
            return self.ffi.NULL
        return self.ffi.cast(kind, array.__array_interface__["data"][0])

    def matrix(self, array: MaybeArray) -> Any:
        if array is None:
            return {}
        rows, columns = array.shape
        row, column = (stride // array.itemsize for stride in array.strides)
        return [self.address(array), rows, columns, row, column, self.dtype(array.dtype)]

    def vector(self, array: MaybeArray) -> Any:
        if array is None:
            return {}
        stride = array.strides[0] // array.itemsize
        return [self.address(array), array.shape[0], stride, self.dtype(array.dtype)]

    def dtype(self, dtype: np.dtype[Any]) -> int:
        return _CODES[name_of(dtype)]

    def experts(self, arrays: dict[str, Array]) -> Any:
        """The struct for weights [E, ...] by name, or those of one layer."""
        dense = arrays["up"].ndim == 2 if "up" in arrays else False
        made = self.struct("experts", count=1 if dense else next(iter(arrays.values())).shape[0])
        self._fill(made, {n: a[None] for n, a in arrays.items()} if dense else arrays)
        return made[0]

    def gradients(self, arrays: dict[str, Array], dense: bool) -> Any:
        """The struct for gradients by name: those of all weights, of some, or of none."""
        made = self.struct("experts")
        self._fill(made, {n: a[None] for n, a in arrays.items()} if dense else arrays)
        return made[0]

    def _fill(self, made: Any, arrays: dict[str, Array]) -> None:
        made.first.size = self.ffi.sizeof(made.first)
        for name in NAMES:
            array = arrays.get(name)
            if array is None:
                continue
            setattr(made.first, name, (self.vector if name[:2] == "b_" else self.matrix)(array[0]))
            setattr(made, f"{name}_stride", array.strides[0] // array.itemsize)


def declarations(header: str) -> str:
    """A header for cffi: without the parts for C++ and without preprocessor lines."""
    text = re.sub(r"(?ms)^#ifdef __cplusplus$.*?^#endif$", "", header)
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def status() -> str:
    """A few words on whether the library was built and can run, for fc.show_config."""
    if not LIBRARY.exists():
        return "not built"
    try:
        library = cuda()
    except RuntimeError as error:
        return f"built; {error}"
    devices = library.ffi.new("int32_t *")
    library.check(library.lib.ffncore_cuda_devices(devices))
    return f"built; devices that it can run on: {devices[0]}"


@functools.cache
def cuda() -> Cuda:
    """Open the library. Raises RuntimeError if it was not built or no device can run it."""
    import cffi

    if not LIBRARY.exists():
        raise RuntimeError(
            "this ffncore was built without its CUDA part; expected a build from source with nvcc "
            ">= 12.4 and -Ccmake.define.FFNCORE_CUDA=ON"
        )
    ffi = cffi.FFI()
    for header in ("ffncore.h", "ffncore_cuda.h"):
        ffi.cdef(declarations((PACKAGE / "include" / header).read_text(encoding="utf-8")))
    try:
        opened = Cuda(ffi, ffi.dlopen(str(LIBRARY)))
    except OSError as error:
        raise RuntimeError(
            f"ffncore's CUDA part cannot be loaded; expected a library for this machine: {error}"
        ) from None
    opened.check(opened.lib.ffncore_cuda_devices(ffi.new("int32_t *")))
    return opened
