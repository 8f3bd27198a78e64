"""torch and CuPy as far as ffncore uses them, over numpy's memory: the device of the emulation.

Each is a module object with the library's name; a fixture puts it where import finds it.
"""

import operator
import types

import numpy as np
from support import BFLOAT16


def allocate(shape, fill, dtype):
    """As a GPU's allocators do: at a multiple of 256 bytes."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + 256, np.uint8)
    start = -memory.ctypes.data % 256
    array = memory[start : start + size].view(dtype).reshape(shape)
    array[...] = fill
    return array


class Wrapped:
    """An array of a library: what both have in common."""

    def __init__(self, array, device=0):
        self.numpy_array, self.device_index = array, device

    def like(self, array):
        return type(self)(array, self.device_index)

    @property
    def shape(self):
        return self.numpy_array.shape

    @property
    def nbytes(self):
        return self.numpy_array.nbytes

    def reshape(self, *shape):
        return self.like(self.numpy_array.reshape(*shape))

    def clip(self, low, high):
        return self.like(self.numpy_array.clip(low, high))

    def __getitem__(self, index):
        return self.like(np.asarray(self.numpy_array[plain(index)]))

    def __setitem__(self, index, value):
        self.numpy_array[plain(index)] = plain(value)

    def __array__(self, *_):
        raise TypeError("a GPU's memory was read from the CPU")

    def __float__(self):
        raise TypeError("a number was waited for")


def plain(value):
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    return value.numpy_array if isinstance(value, Wrapped) else value


def _operator(function):
    def call(self, other):
        return self.like(np.asarray(function(self.numpy_array, plain(other))))

    return call


for name in ("add", "lt", "ge", "and_", "or_"):
    symbol = f"__{name.strip('_')}__"
    setattr(Wrapped, symbol, _operator(getattr(operator, name)))


# ---- torch


class TorchDtype:
    def __init__(self, name, numpy_dtype):
        self.name_, self.numpy_dtype = name, numpy_dtype

    def __repr__(self):
        return f"torch.{self.name_}"


TORCH_DTYPES = {
    name: TorchDtype(name, np.dtype(name))
    for name in ("float32", "float64", "float16", "int32", "int64", "uint8")
}
TORCH_DTYPES |= {dtype.name: TorchDtype(dtype.name, dtype) for dtype in BFLOAT16}


class Tensor(Wrapped):
    requires_grad = False
    on = "cuda"

    @property
    def device(self):
        return types.SimpleNamespace(type=self.on, index=self.device_index)

    @property
    def dtype(self):
        return TORCH_DTYPES[self.numpy_array.dtype.name]

    def data_ptr(self):
        return self.numpy_array.__array_interface__["data"][0] if self.numpy_array.size else 0

    def stride(self):
        return tuple(stride // self.numpy_array.itemsize for stride in self.numpy_array.strides)

    def contiguous(self):
        return self.like(np.ascontiguousarray(self.numpy_array))

    def to(self, dtype):
        return self.like(self.numpy_array.astype(dtype.numpy_dtype))


Tensor.__module__ = "torch"


def fake_torch():
    def make(fill):
        def made(shape, *, dtype, device):
            array = allocate(shape, fill, dtype.numpy_dtype)
            return Tensor(array, int(device.removeprefix("cuda:")))

        return made

    module = types.ModuleType("torch")
    module.__dict__.update(TORCH_DTYPES)
    module.Tensor = Tensor
    # What is not written stays what no result may be.
    module.empty, module.zeros = make(77), make(0)
    module.where = lambda c, a, b: c.like(np.where(plain(c), plain(a), plain(b)))
    module.argsort = lambda a, stable=False: a.like(np.argsort(plain(a), kind="stable"))  # noqa: ARG005
    module.bincount = lambda a, minlength: a.like(np.bincount(plain(a), minlength=minlength))
    module.is_grad_enabled = lambda: True
    module.cuda = types.SimpleNamespace(
        current_stream=lambda device: types.SimpleNamespace(cuda_stream=1000 + device)
    )
    return module


def torch_array(array, device=0):
    return Tensor(array, device)


# ---- CuPy


class ndarray(Wrapped):
    @property
    def device(self):
        return types.SimpleNamespace(id=self.device_index)

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.numpy_array.__array_interface__["data"][0])

    @property
    def strides(self):
        return self.numpy_array.strides

    @property
    def itemsize(self):
        return self.numpy_array.itemsize

    @property
    def dtype(self):
        return self.numpy_array.dtype


ndarray.__module__ = "cupy"


def fake_cupy():
    current = [0]

    class Device:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            self.before, current[0] = current[0], self.index

        def __exit__(self, *_):
            current[0] = self.before

    def make(fill):
        return lambda shape, *, dtype: ndarray(allocate(shape, fill, np.dtype(dtype)), current[0])

    module = types.ModuleType("cupy")
    module.ndarray = ndarray
    module.empty, module.zeros = make(77), make(0)
    module.ascontiguousarray = lambda a, dtype=None: a.like(np.ascontiguousarray(plain(a), dtype))
    module.where = lambda c, a, b: c.like(np.where(plain(c), plain(a), plain(b)))
    module.argsort = lambda a, kind=None: a.like(np.argsort(plain(a), kind=kind))
    module.bincount = lambda a, minlength: a.like(np.bincount(plain(a), minlength=minlength))
    module.cuda = types.SimpleNamespace(
        Device=Device,
        get_current_stream=lambda: types.SimpleNamespace(ptr=2000 + current[0]),
    )
    return module


def cupy_array(array, device=0):
    return ndarray(array, device)


LIBRARIES = {"torch": (fake_torch, torch_array), "cupy": (fake_cupy, cupy_array)}
