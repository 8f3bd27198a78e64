"""Inputs and out= with any strides and leading dimensions give the bits of contiguous copies."""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import itertools

import numpy as np
import pytest
from support import (
    TOLERANCE,
    all_biases,
    make_weights,
    normal,
    same_bits,
    strided_copies,
    unaligned,
)

import ffncore as fc


def test_strides_of_inputs(isa, dtype, gated, rng):
    w = make_weights(rng, 17, 35, gated=gated, biases=all_biases(gated), dtype=dtype)
    x, grad_y = normal(rng, 37, 17, dtype=dtype), normal(rng, 37, 17, dtype=dtype)
    y, saved = fc.ffn_forward(x, w, activation="silu")
    grads = fc.ffn_backward(grad_y, saved).arrays()
    arrays = {name: list(strided_copies(a)) for name, a in w.arrays().items()}
    for i, (x2, grad2) in enumerate(zip(strided_copies(x), strided_copies(grad_y), strict=True)):
        w2 = fc.FFNWeights(**{name: copies[i] for name, copies in arrays.items()})
        for tokens in (1, 3, 37):
            assert same_bits(fc.ffn(x2[:tokens], w2, activation="silu"), y[:tokens])
        y2, saved2 = fc.ffn_forward(x2, w2, activation="silu")
        assert same_bits(y2, y)
        for name, gradient in fc.ffn_backward(grad2, saved2).arrays().items():
            assert same_bits(gradient, grads[name]), name


@pytest.mark.parametrize("tokens", [12, 20, 40])
def test_matrices_in_different_orders(tokens, isa, dtype, rng):
    """gate, up and down, each in C or Fortran order: each is copied or read in place by itself."""
    w = make_weights(rng, 35, 70, biases=all_biases(True), dtype=dtype)
    x, grad_y = normal(rng, tokens, 35, dtype=dtype), normal(rng, tokens, 35, dtype=dtype)
    y, saved = fc.ffn_forward(x, w, activation="silu")
    grads = fc.ffn_backward(grad_y, saved).arrays()
    for turned in itertools.product((False, True), repeat=3):
        arrays = w.arrays()
        for name, fortran in zip(("gate", "up", "down"), turned, strict=True):
            if fortran:
                arrays[name] = np.asfortranarray(arrays[name])
        other = fc.FFNWeights(**arrays)
        assert same_bits(fc.ffn(x, other, activation="silu"), y), turned
        for save in ("preactivations", "input"):
            y2, saved2 = fc.ffn_forward(x, other, activation="silu", save=save)
            assert same_bits(y2, y), (turned, save)
            for name, gradient in fc.ffn_backward(grad_y, saved2).arrays().items():
                assert same_bits(gradient, grads[name]), (turned, save, name)


def test_zero_strides(isa, dtype, rng):
    """The gradient of y.sum() in autograd: a matrix in the memory of one number."""
    w = make_weights(rng, 17, 35, biases=all_biases(True), dtype=dtype)
    x = normal(rng, 37, 17, dtype=dtype)
    _, saved = fc.ffn_forward(x, w, activation="silu")
    one = np.broadcast_to(np.ones((), dtype), x.shape)
    grads = fc.ffn_backward(one, saved).arrays()
    again = fc.ffn_backward(np.ones_like(x), saved).arrays()
    assert all(same_bits(grads[name], again[name]) for name in grads)
    same_rows = np.broadcast_to(x[0], x.shape)
    y = fc.ffn(same_rows, w, activation="silu")
    assert same_bits(y, fc.ffn(same_rows.copy(), w, activation="silu"))
    flat = fc.FFNWeights(up=np.broadcast_to(w.up[0], w.up.shape), down=w.down)
    copied = fc.FFNWeights(up=flat.up.copy(), down=w.down)
    assert same_bits(fc.ffn(x, flat, activation="relu"), fc.ffn(x, copied, activation="relu"))
    assert same_bits(fc.pack(flat)._buffer.view(dtype), fc.pack(copied)._buffer.view(dtype))


def test_leading_dimensions(isa, dtype, gated, rng):
    w = make_weights(rng, 7, 19, gated=gated, dtype=dtype)
    x, grad_y = normal(rng, 24, 7, dtype=dtype), normal(rng, 24, 7, dtype=dtype)
    y, saved = fc.ffn_forward(x, w, activation="silu")
    grads = fc.ffn_backward(grad_y, saved).arrays()
    for shape in ((24, 7), (4, 6, 7), (2, 3, 4, 7), (1, 24, 1, 7)):
        x2, grad2 = x.reshape(shape), grad_y.reshape(shape)
        assert same_bits(fc.ffn(x2, w, activation="silu"), y.reshape(shape))
        y2, saved2 = fc.ffn_forward(x2, w, activation="silu")
        assert same_bits(y2, y.reshape(shape))
        assert saved2.up.shape == (*shape[:-1], 19)
        for name, gradient in fc.ffn_backward(grad2, saved2).arrays().items():
            expected = grads[name].reshape(shape) if name == "x" else grads[name]
            assert same_bits(gradient, expected), name


def test_leading_dimensions_that_cannot_be_merged(isa, dtype, rng):
    w = make_weights(rng, 7, 19, dtype=dtype)
    x = normal(rng, 4, 6, 7, dtype=dtype)
    y, saved = fc.ffn_forward(x, w, activation="silu")
    turned = np.array(x.transpose(1, 0, 2)).transpose(1, 0, 2)
    assert same_bits(fc.ffn(turned, w, activation="silu"), y)
    _, saved2 = fc.ffn_forward(turned, w, activation="silu")
    grads, grads2 = fc.ffn_backward(x, saved), fc.ffn_backward(turned, saved2)
    assert same_bits(grads.x, grads2.x)
    assert same_bits(grads.weights.up, grads2.weights.up)


def test_read_only_and_unaligned_inputs(isa, dtype, rng):
    w = make_weights(rng, 7, 19, dtype=dtype)
    x = normal(rng, 5, 7, dtype=dtype)
    y, saved = fc.ffn_forward(x, w, activation="silu")
    frozen = x.copy()
    frozen.flags.writeable = False
    locked = {name: a.copy() for name, a in w.arrays().items()}
    for a in locked.values():
        a.flags.writeable = False
    assert same_bits(fc.ffn(frozen, fc.FFNWeights(**locked), activation="silu"), y)
    packed_fields = fc.FFNWeights(**{name: unaligned(a) for name, a in w.arrays().items()})
    assert same_bits(fc.ffn(unaligned(x), packed_fields, activation="silu"), y)
    assert same_bits(fc.ffn(x, fc.pack(packed_fields), activation="silu"), y)
    _, saved2 = fc.ffn_forward(unaligned(x), packed_fields, activation="silu")
    grads, grads2 = fc.ffn_backward(x, saved), fc.ffn_backward(unaligned(x), saved2)
    assert same_bits(grads.weights.gate, grads2.weights.gate)
    packed_fields.up[...] *= 2  # changed weights have an effect on the next call
    w.up[...] *= 2
    assert same_bits(fc.ffn(x, packed_fields, activation="silu"), fc.ffn(x, w, activation="silu"))


def test_out_of_any_strides(isa, dtype, rng):
    w = make_weights(rng, 8, 19, biases=all_biases(True), dtype=dtype)
    x = normal(rng, 6, 4, 8, dtype=dtype)
    expected, saved = fc.ffn_forward(x, w, activation="silu")
    grad_x = fc.ffn_backward(x, saved).x
    room = np.empty((8, 12, 8, 2), dtype)
    outs = (
        room[:6, :4, :, 0],
        room[1:7, 10:2:-2, ::-1, 1],
        room[:, :4, :6, 1].transpose(2, 1, 0),
        np.empty((4, 6, 8), dtype).transpose(1, 0, 2),
    )
    for out in outs:
        room[...] = -7
        assert fc.ffn(x, w, activation="silu", out=out) is out
        assert same_bits(out, expected)
        if np.shares_memory(out, room):
            assert (room == -7).sum() == room.size - out.size
        out[...] = 0
        assert fc.ffn_forward(x, w, activation="silu", out=out)[0] is out
        assert same_bits(out, expected)
        filled = fc.ffn_backward(x, saved, needs=("x",), out={"x": out})
        assert filled.x is out
        assert same_bits(out, grad_x)
        out[...] = 1
        fc.ffn_backward(x, saved, needs=("x",), out={"x": out}, accumulate=True)
        close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
        np.testing.assert_allclose(out.astype(np.float64), 1 + grad_x.astype(np.float64), **close)
