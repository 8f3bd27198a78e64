"""The C ABI of packed quantised weights: one layer by hand, and arguments that are refused."""

import numpy as np
import pytest
from c_abi import check, ffi, forward_args, lib

import ffncore as fc

D, F = 40, 24


def numbers(array, stored="FLOAT32"):
    return {
        "data": ffi.cast("void *", array.ctypes.data),
        "row_stride": array.shape[1],
        "col_stride": 1,
        "stored": getattr(lib, f"FFNCORE_{stored}"),
    }


def matrix(codes, scales):
    return {
        "rows": codes.shape[0],
        "cols": codes.shape[1],
        "codes": ffi.cast("uint8_t *", codes.ctypes.data),
        "bits": 8,
        "group": codes.shape[1],
        "scale": numbers(scales),
    }


@pytest.fixture
def layer():
    """The struct, and the arrays that it points to."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in (("up", (F, D)), ("down", (D, F))):
        codes = rng.integers(0, 256, shape, dtype=np.uint8)
        arrays[name] = codes, rng.random((shape[0], 1), dtype="f4")
    fields = {name: matrix(*pair) for name, pair in arrays.items()}
    weights = ffi.new("ffncore_coded_weights *", fields | {"size": 0})
    weights.size = ffi.sizeof("ffncore_coded_weights")
    return weights, arrays


def packed(weights):
    nbytes = lib.ffncore_coded_bytes(weights)
    assert nbytes > 0
    buffer = np.zeros(nbytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    buffer = buffer[start : start + nbytes]
    check(lib.ffncore_pack_coded(weights, ffi.cast("void *", buffer.ctypes.data)))
    return buffer


def test_a_layer(layer):
    weights, arrays = layer
    buffer = packed(weights)
    x = np.random.default_rng(1).standard_normal((3, D), dtype="f4")
    w = fc.FFNWeights(**{n: c.view(np.int8) * s for n, (c, s) in arrays.items()})
    y = np.empty_like(x)
    args = forward_args(x, y, w, lib.FFNCORE_RELU)
    args.weights.packed = ffi.cast("void *", buffer.ctypes.data)
    check(lib.ffncore_ffn_forward(args))
    np.testing.assert_array_equal(y, fc.ffn(x, w, activation="relu"))


def test_header_bytes(layer):
    buffer = packed(layer[0])
    at = ffi.cast("void *", buffer.ctypes.data)
    assert lib.ffncore_header_bytes(at, buffer.nbytes) == buffer.nbytes
    assert lib.ffncore_header_bytes(at, 100) == -1
    buffer[0] ^= 1
    assert lib.ffncore_header_bytes(at, buffer.nbytes) == -1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: setattr(w, "size", 8), "size"),
        (lambda w: setattr(w.up, "bits", 3), "up.bits is 3"),
        (lambda w: setattr(w.up, "group", 0), "up.group is 0"),
        (lambda w: setattr(w.down, "group", F + 1), f"down.group is {F + 1}"),
        (lambda w: setattr(w.down, "cols", F + 1), "another shape"),
        (lambda w: setattr(w.up, "codes", ffi.NULL), "no up"),
        (lambda w: setattr(w.up.scale, "data", ffi.NULL), "scale is absent"),
        (lambda w: setattr(w.up.scale, "stored", lib.FFNCORE_FLOAT64), "float64"),
    ],
)
def test_bad_arguments_are_refused(layer, change, says):
    weights, _ = layer
    change(weights)
    assert lib.ffncore_coded_bytes(weights) == -1
    assert says in ffi.string(lib.ffncore_last_error()).decode()
    assert lib.ffncore_pack_coded(weights, ffi.cast("void *", 64)) != lib.FFNCORE_OK
    assert lib.ffncore_coded_bytes(ffi.NULL) == -1
