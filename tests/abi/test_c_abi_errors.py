"""The C ABI with invalid arguments: it returns a status and one sentence, and changes nothing."""

import numpy as np
import pytest
from c_abi import (
    activation,
    activation_args,
    check,
    ffi,
    forward_args,
    layer,
    lib,
    packed_layer,
    refused,
    said,
    set_field,
    weights,
)

import ffncore as fc


def wrong_size(args):
    args.size = 0


def wrong_dtype(args):
    args.x.dtype = 99


def another_dtype(args):
    args.y.dtype = lib.FFNCORE_FLOAT16


def narrow_up(args):
    args.weights.up.dtype = lib.FFNCORE_BFLOAT16


def wide_weights(args):
    args.x.dtype = args.y.dtype = lib.FFNCORE_FLOAT16


def wide_bias(args):
    args.weights.b_down.dtype = lib.FFNCORE_FLOAT64


def wrong_shape(args):
    args.weights.down.cols += 1


def wrong_kind(args):
    args.activation.kind = 1000


def no_output(args):
    args.y.data = ffi.NULL


@pytest.mark.parametrize(
    "spoil",
    [
        wrong_size,
        wrong_dtype,
        another_dtype,
        narrow_up,
        wide_weights,
        wide_bias,
        wrong_shape,
        wrong_kind,
        no_output,
    ],
)
def test_invalid_arguments(spoil):
    x, w = layer(np.float32)
    y = np.full_like(x, 3)
    args = forward_args(x, y, w, lib.FFNCORE_SILU)
    spoil(args)
    assert lib.ffncore_ffn_forward(args) == lib.FFNCORE_INVALID_ARGUMENT
    assert len(ffi.string(lib.ffncore_last_error())) > 10
    assert (y == 3).all()


def test_null():
    cost = ffi.new("ffncore_cost *", {"size": ffi.sizeof("ffncore_cost")})
    refused(lib.ffncore_ffn_forward(ffi.NULL), "args is NULL")
    refused(lib.ffncore_ffn_backward(ffi.NULL), "args is NULL")
    refused(lib.ffncore_activation_forward(ffi.NULL), "args is NULL")
    refused(lib.ffncore_activation_backward(ffi.NULL), "args is NULL")
    refused(lib.ffncore_forward_cost(ffi.NULL, 0, cost), "args is NULL")
    refused(lib.ffncore_backward_cost(ffi.NULL, cost), "args is NULL")
    refused(lib.ffncore_pack(0, ffi.NULL, ffi.NULL), "weights is NULL")
    refused(lib.ffncore_unpack(ffi.NULL, ffi.NULL), "into is NULL")
    lib.ffncore_activation_init(ffi.NULL, lib.FFNCORE_SILU)
    x, w = layer(np.float32)
    raw = ffi.new("ffncore_weights *", weights(w))
    refused(lib.ffncore_pack(0, raw, ffi.NULL), "packed is NULL")
    refused(lib.ffncore_unpack(raw, ffi.NULL), "packed is NULL")
    args = forward_args(x, x, w, lib.FFNCORE_SILU)
    refused(lib.ffncore_forward_cost(args, 0, ffi.NULL), "cost is NULL")


def test_numbers_of_bytes():
    _, w = layer(np.float32)
    raw = ffi.new("ffncore_weights *", weights(w))
    for bytes_, sentence in (
        (lambda: lib.ffncore_packed_bytes(lib.FFNCORE_FLOAT32, ffi.NULL), "weights is NULL"),
        (lambda: lib.ffncore_packed_bytes(7, raw), "dtype is 7"),
        (lambda: lib.ffncore_saved_bytes(7, 1, 1, 0), "dtype is 7"),
        (lambda: lib.ffncore_saved_bytes(0, -1, 1, 0), "shape (-1, 1)"),
        (lambda: lib.ffncore_saved_bytes(0, 2**40, 2**20, 1), "at most 2^57 elements"),
        (lambda: lib.ffncore_saved_bytes(0, 1, 2**62, 1), "at most 2^57 elements"),
    ):
        assert bytes_() == -1
        assert sentence in said()
    most = lib.ffncore_saved_bytes(lib.FFNCORE_FLOAT64, 2**40, 2**17, 1)
    assert most == 2 * 8 * 2**57
    raw.up.rows = raw.gate.rows = raw.down.cols = 2**40
    raw.up.cols = raw.gate.cols = raw.down.rows = 2**20
    assert lib.ffncore_packed_bytes(lib.FFNCORE_FLOAT32, raw) == -1
    assert "weights.up has shape" in said()


def test_tokens():
    x, w = layer(np.float32)
    args = forward_args(x, x.copy(), w, lib.FFNCORE_SILU)
    for rows in (-1, -(2**62), 2**62):
        args.x.rows = args.y.rows = rows
        refused(lib.ffncore_ffn_forward(args), "x has shape")
    args.x.rows, args.x.data = 0, ffi.NULL
    check(lib.ffncore_ffn_forward(args))


@pytest.mark.parametrize(
    "path, value, sentence",
    [
        ("size", 0, "weights.size"),
        ("up.rows", 131, "up has shape (131, 70); expected (130, 70)"),
        ("gate.rows", 129, "gate has shape"),
        ("gate.cols", 71, "gate has shape"),
        ("down.cols", 131, "down has shape"),
        ("down.rows", -1, "down has shape"),
        ("b_gate.length", 131, "b_gate has length 131; expected 130"),
        ("b_up.length", -1, "b_up has length"),
        ("b_down.length", 130, "b_down has length 130; expected 70"),
    ],
)
def test_unpack_refuses_what_does_not_fit(path, value, sentence):
    _x, w, packed = packed_layer()
    back = fc.FFNWeights(**{name: np.full(a.shape, 3, a.dtype) for name, a in w.arrays().items()})
    into = ffi.new("ffncore_weights *", weights(back))
    set_field(path, value)(into)
    refused(lib.ffncore_unpack(into, ffi.from_buffer("char[]", packed)), sentence)
    assert all((a == 3).all() for a in back.arrays().values())


def test_unpack_refuses_what_is_not_there():
    _x, w, _ = packed_layer()
    into = ffi.new("ffncore_weights *", weights(w))
    _, _, plain = packed_layer(gated=False)
    _, _, bare = packed_layer(biases=False)
    _, _, double = packed_layer(dtype=np.float64)
    for packed, sentence in (
        (plain, "gate is given, but packed holds a plain block"),
        (bare, "b_gate is given, but packed holds no such bias"),
        (double, "gate has dtype float32; expected float64"),
        (np.zeros(1024, np.uint8), "packed was not written by ffncore_pack"),
    ):
        refused(lib.ffncore_unpack(into, ffi.from_buffer("char[]", packed)), sentence)


@pytest.mark.parametrize(
    "field", ["gate.rows", "up.data", "up.rows", "h.data", "h.cols", "grad_h.data", "grad_h.rows"]
)
def test_activation_refuses(field):
    names = ("gate", "up", "h", "grad_h", "grad_gate", "grad_up")
    arrays = {name: np.full((5, 23), 3, np.float32) for name in names}
    args = activation_args(lib.FFNCORE_SILU, **arrays)
    name, what = field.split(".")
    set_field(field, ffi.NULL if what == "data" else -1)(args)
    sentence = f"{name} is absent" if what == "data" else f"{name} has shape"
    if not name.startswith("grad"):
        refused(lib.ffncore_activation_forward(args), sentence)
    if name != "h":
        refused(lib.ffncore_activation_backward(args), sentence)
    assert all((a == 3).all() for a in arrays.values())


def test_cost_reads_nothing():
    """Pointers are only compared with NULL: here they point nowhere."""
    nowhere = ffi.cast("void *", 8)
    cost = ffi.new("ffncore_cost *", {"size": ffi.sizeof("ffncore_cost")})
    args = ffi.new("ffncore_backward_args *")
    args.size, args.x = ffi.sizeof("ffncore_backward_args"), {"rows": 64, "cols": 64}
    args.activation, args.saved = activation(lib.FFNCORE_XIELU), nowhere
    block = {"data": nowhere, "rows": 128, "cols": 64}
    args.weights = {
        "size": ffi.sizeof("ffncore_weights"),
        "gate": block,
        "up": block,
        "down": {"data": nowhere, "rows": 64, "cols": 128},
        "b_up": {"data": nowhere, "length": 128, "stride": -3},
        "packed": nowhere,
    }
    product = 2 * 64 * 64 * 128

    def flops():
        check(lib.ffncore_backward_cost(args, cost))
        return cost.flops

    assert flops() == 0
    args.grad_b_down = {"data": nowhere, "length": 64}
    assert flops() == 0
    args.grad_b_up = {"data": nowhere, "length": 128}
    assert flops() == product
    without = cost.extra_bytes
    args.grad_alpha_p = ffi.cast("double *", 8)
    assert flops() == product
    assert cost.extra_bytes > without
    args.weights.packed = args.saved = ffi.NULL
    assert flops() == 3 * product
    args.grad_up.data = nowhere
    refused(lib.ffncore_backward_cost(args, cost), "grad_up has shape (0, 0)")


def test_a_sentence_has_its_limit():
    assert lib.ffncore_isa_use(b"x" * 100_000) == lib.FFNCORE_UNSUPPORTED
    assert 100 < len(said()) < 1000
