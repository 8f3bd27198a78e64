"""Stand-ins for torch and CuPy with numpy's memory as their GPU, as far as ffncore uses them.

Each is a module object with the library's name, which a fixture puts into sys.modules. A function
that would wait for the GPU raises here. So does work of CuPy that is queued while the current
device is not that of the array: it would run there, on another stream.
"""

import operator
import types

import numpy as np
from support import BFLOAT16


def allocate(shape, fill, dtype):
    """Memory at a multiple of 256 bytes, as the allocators of GPUs return it."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + 256, np.uint8)
    start = -memory.ctypes.data % 256
    array = memory[start : start + size].view(dtype).reshape(shape)
    array[...] = fill
    return array


class Wrapped:
    """An array of a library: the part that both libraries share."""

    def __init__(self, array, device=0):
        self.numpy_array, self.device_index = array, device

    def like(self, array):
        return type(self)(array, self.device_index)

    def works(self):
        """Check the conditions for queueing work."""

    @property
    def shape(self):
        return self.numpy_array.shape

    @property
    def nbytes(self):
        return self.numpy_array.nbytes

    def reshape(self, *shape):
        return self.like(self.numpy_array.reshape(*shape))

    def __getitem__(self, index):
        if isinstance(index, Wrapped):
            self.works()
            assert index.numpy_array.dtype != bool, "how many there are would be waited for"
        return self.like(np.asarray(self.numpy_array[plain(index)]))

    def __array__(self, *_):
        raise TypeError("a GPU's memory was read from the CPU")

    def waits(self):
        raise TypeError("a number was waited for")

    __float__ = __int__ = __bool__ = __index__ = item = tolist = waits


def plain(value):
    return value.numpy_array if isinstance(value, Wrapped) else value


def _operator(function):
    def call(self, other):
        self.works()
        return self.like(np.asarray(function(self.numpy_array, plain(other))))

    return call


for name in ("add", "sub", "lt", "ge", "or_"):
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
    for name in ("float32", "float64", "float16", "int16", "int32", "int64", "uint8")
}
TORCH_DTYPES |= {dtype.name: TorchDtype(dtype.name, dtype) for dtype in BFLOAT16}
_BY_NUMPY = {known.numpy_dtype: known for known in TORCH_DTYPES.values()}


class Tensor(Wrapped):
    requires_grad = False
    is_cuda = True
    own_dtype = None  # a dtype that numpy does not have

    @property
    def device(self):
        if self.is_cuda:
            return types.SimpleNamespace(type="cuda", index=self.device_index)
        return "cpu"

    @property
    def dtype(self):
        return self.own_dtype or _BY_NUMPY[self.numpy_array.dtype]

    def data_ptr(self):
        return self.numpy_array.__array_interface__["data"][0] if self.numpy_array.size else 0

    def stride(self):
        return tuple(stride // self.numpy_array.itemsize for stride in self.numpy_array.strides)

    def element_size(self):
        return self.numpy_array.itemsize

    def detach(self):
        return self.like(self.numpy_array.view())

    def clone(self):
        return self.like(self.numpy_array.copy())

    def contiguous(self):
        return self.like(np.ascontiguousarray(self.numpy_array))

    def to(self, dtype):
        return self.like(self.numpy_array.astype(dtype.numpy_dtype))

    def clamp(self, low, high):
        return self.like(self.numpy_array.clip(low, high))

    def copy_(self, values):
        self.numpy_array[...] = plain(values)

    def add_(self, values):
        self.numpy_array[...] += plain(values)

    def scatter_add_(self, axis, index, values):
        assert axis == 0
        assert index.numpy_array.dtype == np.int64
        np.add.at(self.numpy_array, plain(index), plain(values))
        return self

    def masked_fill_(self, mask, value):
        self.numpy_array[np.broadcast_to(plain(mask), self.shape)] = value
        return self


Tensor.__module__ = "torch"


def fake_torch():
    def make(fill):
        def made(shape, *, dtype, device):
            array = allocate(shape, fill, dtype.numpy_dtype)
            return Tensor(array, int(device.removeprefix("cuda:")))

        return made

    def where(condition, value, other):
        ids = next(v for v in (value, other) if isinstance(v, Wrapped)).numpy_array
        return condition.like(
            np.where(plain(condition), plain(value), plain(other)).astype(ids.dtype)
        )

    module = types.ModuleType("torch")
    module.__dict__.update(TORCH_DTYPES)
    module.Tensor = Tensor
    # Elements that are not written keep a value that no result has.
    module.empty, module.zeros = make(77), make(0)
    module.where = where
    module.ones_like = lambda a: a.like(np.ones_like(plain(a)))
    # Not stable unless requested: equal keys are in falling order.
    module.argsort = lambda a, stable=False: a.like(
        np.argsort(plain(a), kind="stable") if stable else _unstable(plain(a))
    )
    module.is_grad_enabled = lambda: True
    module.cuda = types.SimpleNamespace(
        current_stream=lambda device: types.SimpleNamespace(cuda_stream=1000 + device)
    )
    return module


def _unstable(keys):
    return np.lexsort((-np.arange(keys.size), keys))


def torch_array(array, device=0):
    return Tensor(array, device)


# ---- CuPy

_current = [0]


class Device:
    def __init__(self, index):
        self.index = index

    def __enter__(self):
        self.before, _current[0] = _current[0], self.index

    def __exit__(self, *_):
        _current[0] = self.before


class ndarray(Wrapped):
    def works(self):
        assert _current[0] == self.device_index, "queued on another device than the array's"

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

    def view(self, *dtype):
        return self.like(self.numpy_array.view(*dtype))

    def copy(self):
        self.works()
        return self.like(self.numpy_array.copy())

    def astype(self, dtype, copy=True):
        self.works()
        return self.like(self.numpy_array.astype(dtype, copy=copy))

    def clip(self, low, high):
        self.works()
        return self.like(self.numpy_array.clip(low, high))

    def __setitem__(self, index, value):
        self.works()
        assert index is ...
        self.numpy_array[...] = plain(value)


ndarray.__module__ = "cupy"


def fake_cupy():
    def make(fill):
        return lambda shape, *, dtype: ndarray(allocate(shape, fill, np.dtype(dtype)), _current[0])

    def queued(function):
        def call(*arrays, **options):
            first = next(array for array in arrays if isinstance(array, ndarray))
            first.works()
            return first.like(np.asarray(function(*map(plain, arrays), **options)))

        return call

    def where(condition, value, other):
        assert all(plain(v).dtype.kind in "iu" for v in (value, other) if isinstance(v, ndarray))
        return queued(np.where)(condition, value, other)

    module = types.ModuleType("cupy")
    module.ndarray = ndarray
    module.empty, module.zeros = make(77), make(0)
    module.arange = lambda end, dtype: ndarray(np.arange(end, dtype=dtype), _current[0])
    module.where = where
    module.ascontiguousarray = queued(lambda a, dtype=None: np.ascontiguousarray(a, dtype))
    module.argsort = queued(lambda a: np.argsort(a, kind="stable"))
    module.sort = queued(np.sort)
    module.searchsorted = queued(np.searchsorted)
    module.cuda = types.SimpleNamespace(
        Device=Device,
        get_current_stream=lambda: types.SimpleNamespace(ptr=2000 + _current[0]),
    )
    return module


def cupy_array(array, device=0):
    return ndarray(array, device)


LIBRARIES = {"torch": (fake_torch, torch_array), "cupy": (fake_cupy, cupy_array)}
