"""What the tests of the C ABI share: the library through cffi, and its structs from numpy arrays.

This keeps ffncore.h true: cffi takes sizes and offsets from its text alone.
"""

import importlib.resources
import re

import cffi
import numpy as np

import ffncore as fc

PACKAGE = importlib.resources.files("ffncore")
HEADER = (PACKAGE / "include" / "ffncore.h").read_text()


def declarations():
    """The header as cffi wants it: without what only a C++ compiler sees, and without # lines."""
    text = re.sub(r"(?ms)^#ifdef __cplusplus$.*?^#endif$", "", HEADER)
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


ffi = cffi.FFI()
ffi.cdef(declarations())
lib = ffi.dlopen(str(PACKAGE / "libffncore.so"))


def code(array):
    return getattr(lib, f"FFNCORE_{array.dtype.name.upper()}")


def matrix(array):
    if array is None:
        return {}
    row, col = (stride // array.itemsize for stride in array.strides)
    return {
        "data": ffi.cast("void *", array.__array_interface__["data"][0]),
        "rows": array.shape[0],
        "cols": array.shape[1],
        "row_stride": row,
        "col_stride": col,
        "dtype": code(array),
    }


def vector(array):
    if array is None:
        return {}
    return {
        "data": ffi.cast("void *", array.__array_interface__["data"][0]),
        "length": array.shape[0],
        "stride": array.strides[0] // array.itemsize,
        "dtype": code(array),
    }


def weights(w):
    return {
        "size": ffi.sizeof("ffncore_weights"),
        **{name: matrix(getattr(w, name)) for name in ("gate", "up", "down")},
        **{name: vector(getattr(w, name)) for name in ("b_gate", "b_up", "b_down")},
    }


def activation(kind):
    value = ffi.new("ffncore_activation *")
    lib.ffncore_activation_init(value, kind)
    return value[0]


def forward_args(x, y, w, kind, saved=ffi.NULL):
    args = ffi.new("ffncore_forward_args *")
    args.size = ffi.sizeof("ffncore_forward_args")
    args.saved = saved
    args.x, args.y, args.weights, args.activation = (
        matrix(x),
        matrix(y),
        weights(w),
        activation(kind),
    )
    return args


def said():
    return ffi.string(lib.ffncore_last_error()).decode()


def check(status):
    assert status == lib.FFNCORE_OK, said()


def layer(dtype, gated=True, biases=True, tokens=37, d=70, f=130):
    rng = np.random.default_rng(7)
    draw = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
    w = fc.FFNWeights(
        gate=draw(f, d) if gated else None,
        up=draw(d, f).T,  # any strides
        down=draw(d, 2 * f)[:, ::-2],
        b_gate=draw(f) if gated and biases else None,
        b_up=draw(f) if biases else None,
        b_down=draw(2 * d)[::2] if biases else None,
    )
    return draw(tokens, d), w


def refused(status, sentence):
    assert status == lib.FFNCORE_INVALID_ARGUMENT
    assert sentence in said()


def packed_layer(dtype=np.float32, gated=True, biases=True):
    x, w = layer(dtype, gated, biases)
    raw = ffi.new("ffncore_weights *", weights(w))
    packed = np.full(lib.ffncore_packed_bytes(code(x), raw), 7, np.uint8)
    check(lib.ffncore_pack(code(x), raw, ffi.from_buffer("char[]", packed)))
    return x, w, packed


def set_field(path, value):
    def spoil(into):
        *owner, name = path.split(".")
        for part in owner:
            into = getattr(into, part)
        setattr(into, name, value)

    return spoil


def activation_args(kind, **arrays):
    args = ffi.new("ffncore_activation_args *")
    args.size = ffi.sizeof("ffncore_activation_args")
    args.activation = activation(kind)
    for name, array in arrays.items():
        setattr(args, name, matrix(array))
    return args
