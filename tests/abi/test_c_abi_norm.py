"""Norms through the C ABI: the same bits as from Python, and the error texts."""

import numpy as np
import pytest
from c_abi import check, ffi, lib, matrix, refused, vector
from support import DTYPES, normal, same_bits

import ffncore as fc

T, D = 7, 19


def norm_args(kind, x, gain=None, bias=None, **arrays):
    args = ffi.new("ffncore_norm_args *")
    args.size = ffi.sizeof("ffncore_norm_args")
    args.kind, args.eps, args.gain_offset = kind, 0.25, 0.5
    args.x, args.gain, args.bias = matrix(x), vector(gain), vector(bias)
    for name, array in arrays.items():
        setattr(args, name, (vector if array.ndim == 1 else matrix)(array))
    return args


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_passes(dtype, rng):
    x, dy = normal(rng, T, D, dtype=dtype), np.asfortranarray(normal(rng, T, D, dtype=dtype))
    gain, bias = normal(rng, 2 * D, dtype=dtype)[::2], normal(rng, D, dtype=dtype)
    y, dx = np.zeros((D, T), dtype).T, np.zeros((T, D), dtype)
    dgain, dbias = np.zeros(D, dtype), np.zeros(3 * D, dtype)[::3]
    check(lib.ffncore_norm_forward(norm_args(lib.FFNCORE_NORM_LAYER, x, gain, bias, y=y)))
    assert same_bits(y, fc.layer_norm(x, gain, bias, 0.25, 0.5))
    outputs = {"grad_x": dx, "grad_gain": dgain, "grad_bias": dbias}
    check(lib.ffncore_norm_backward(
        norm_args(lib.FFNCORE_NORM_LAYER, x, gain, grad_y=dy, **outputs)
    ))  # fmt: skip
    grads = fc.layer_norm_backward(dy, x, gain, bias, 0.25, 0.5)
    for name, array in outputs.items():
        assert same_bits(array, grads.arrays()[name.removeprefix("grad_")])


def test_gradients_may_be_absent_and_float32(rng):
    x, dy = normal(rng, T, D, dtype="f2"), normal(rng, T, D, dtype="f2")
    gain, wide, narrow = np.ones(D, "f2"), np.zeros(D, "f4"), np.zeros(D, "f2")
    for to in (wide, narrow):
        check(lib.ffncore_norm_backward(
            norm_args(lib.FFNCORE_NORM_RMS, x, gain, grad_y=dy, grad_gain=to)
        ))  # fmt: skip
    assert same_bits(wide.astype("f2"), narrow)
    check(lib.ffncore_norm_backward(norm_args(lib.FFNCORE_NORM_RMS, x, gain, grad_y=dy)))
    none = norm_args(lib.FFNCORE_NORM_RMS, x[:0], gain, grad_y=dy[:0], grad_gain=wide)
    check(lib.ffncore_norm_backward(none))
    assert not wide.any()


def test_refused(rng):
    x = normal(rng, T, D, dtype="f4")
    refused(lib.ffncore_norm_forward(ffi.NULL), "args is NULL")
    refused(lib.ffncore_norm_backward(ffi.NULL), "args is NULL")
    for spoil, sentence in (
        (lambda a: setattr(a, "size", 8), "args.size is 8"),
        (lambda a: setattr(a, "kind", 2), "kind is 2; expected 0 or 1"),
        (lambda a: setattr(a, "eps", -1), "eps is -1"),
        (lambda a: setattr(a, "gain_offset", np.nan), "gain_offset is nan"),
        (lambda a: setattr(a.x, "dtype", 9), "x.dtype is 9"),
        (lambda a: setattr(a.x, "rows", -1), "x has shape"),
        (lambda a: setattr(a.gain, "length", 3), "gain has length 3; expected 19"),
        (lambda a: setattr(a.gain, "dtype", 1), "gain has dtype float64; expected float32"),
        (lambda a: setattr(a.y, "cols", 3), "y has shape (7, 3); expected (7, 19)"),
        (lambda a: setattr(a.y, "data", ffi.NULL), "y is absent"),
        (lambda a: setattr(a.y, "dtype", 1), "y has dtype float64; expected float32"),
    ):
        y, gain = np.full_like(x, 3), np.ones(D, "f4")
        args = norm_args(lib.FFNCORE_NORM_RMS, x, gain, y=y)
        spoil(args)
        refused(lib.ffncore_norm_forward(args), sentence)
        assert (y == 3).all()
    refused(
        lib.ffncore_norm_backward(norm_args(lib.FFNCORE_NORM_RMS, x, grad_x=x.copy())),
        "grad_y is absent",
    )
