"""Helpers for tests of the C ABI: the library through cffi, and its structs from numpy arrays.

cffi computes sizes and offsets from the text of the headers, so that these tests also check the
text.
"""

import importlib.resources
import re

import cffi
import numpy as np

import ffncore as fc

PACKAGE = importlib.resources.files("ffncore")
HEADERS = ("ffncore.h", "ffncore_quantised.h")
HEADER = "\n".join((PACKAGE / "include" / name).read_text() for name in HEADERS)


def declarations():
    """The headers for cffi: without the parts for C++ and without preprocessor lines."""
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


# ---- mixture of experts --------------------------------------------------------------------------

WEIGHTS = ("gate", "up", "down", "b_gate", "b_up", "b_down")


def mixture(dtype, gated=True, biases=True, tokens=37, n=3, k=2, d=18, f=34):
    """x, grad_y, ids, routing weights, experts; experts and matrices may have any strides."""
    rng = np.random.default_rng(11)
    draw = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
    w = fc.FFNWeights(
        gate=draw(n, f, d) if gated else None,
        up=draw(d, n, f).transpose(1, 2, 0),
        down=draw(2 * n, d, 2 * f)[::-2, :, ::-2],
        b_gate=draw(n, f) if gated and biases else None,
        b_up=draw(f, n).T if biases else None,
        b_down=draw(n, 2 * d)[:, ::2] if biases else None,
    )
    ids = rng.integers(-1, n, (tokens, k), dtype=np.int32)
    factors = draw(tokens, k).astype(np.float64 if dtype == np.float64 else np.float32)
    return draw(tokens, d), draw(tokens, d), ids, factors, w


def experts(w):
    """Expert 0 of these arrays, and the strides between experts in elements; None: no arrays."""
    size = {"size": ffi.sizeof("ffncore_experts")}
    if w is None:
        return size
    first = w.expert(0)
    steps = {f"{name}_stride": a.strides[0] // a.itemsize for name, a in w.arrays().items()}
    return {**size, "first": weights(first), "count": w.n_experts, **steps}


def moe_args(name, x, ids, factors, w, kind, **fields):
    """name: "forward" or "backward"; kind: an activation's number or its struct; fields: others."""
    args = ffi.new(f"ffncore_moe_{name}_args *")
    args.size = ffi.sizeof(f"ffncore_moe_{name}_args")
    args.x, args.experts = matrix(x), experts(w)
    args.activation = activation(kind) if isinstance(kind, int) else kind
    args.expert_ids = ffi.cast("int32_t *", ids.ctypes.data)
    args.routing_weights = matrix(factors)
    if name == "backward":
        args.grad_experts = experts(None)
    for field, value in fields.items():
        setattr(args, field, matrix(value) if isinstance(value, np.ndarray) else value)
    return args
