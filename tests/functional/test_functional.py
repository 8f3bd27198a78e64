"""ffn and its passes against the reference: odd sizes, biases, long sums, no tokens."""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import itertools

import numpy as np
import pytest
from support import (
    DTYPES,
    ODD_SIZES,
    Accuracy,
    all_biases,
    make_weights,
    normal,
    same_bits,
    yardsticks,
)

import ffncore as fc
from ffncore import reference

# Each size occurs once as the number of tokens, of inputs and of hidden units.
SIZES = [
    *((t, 17, 33) for t in ODD_SIZES),
    *((5, d, 19) for d in ODD_SIZES[1:]),
    *((33, 7, f) for f in ODD_SIZES[1:]),
    *((65, 33, 97), (31, 97, 64), (16, 16, 16), (64, 64, 64), (1, 1, 1)),
]


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
def test_odd_sizes(activation, isa, dtype, gated, rng):
    accuracy = Accuracy()
    for t, d, f in SIZES:
        w = make_weights(rng, d, f, gated=gated, biases=all_biases(gated), dtype=dtype)
        x, grad_y = normal(rng, t, d, dtype=dtype), normal(rng, t, d, dtype=dtype)
        where = f"T={t} d={d} f={f}"
        y, saved = fc.ffn_forward(x, w, activation=activation)
        rough_y, rough = yardsticks(x, w, grad_y, activation)
        exact = reference.ffn(x, w, activation=activation)
        accuracy.add("y", y, exact, rough_y, where)
        grads = fc.ffn_backward(grad_y, saved).arrays()
        exact = reference.ffn_backward(grad_y, x, w, activation=activation)
        assert set(grads) == set(exact)
        for name, gradient in grads.items():
            accuracy.add(name, gradient, exact[name], rough[name], where)
    accuracy.check()


def test_biases_each_alone(isa, dtype, gated, rng):
    names = all_biases(gated)
    for count in range(len(names) + 1):
        for biases in itertools.combinations(names, count):
            w = make_weights(rng, 17, 19, gated=gated, biases=biases, dtype=dtype)
            x, grad_y = normal(rng, 9, 17, dtype=dtype), normal(rng, 9, 17, dtype=dtype)
            accuracy = Accuracy()
            exact = reference.ffn(x, w, activation="gelu")
            y, saved = fc.ffn_forward(x, w, activation="gelu")
            accuracy.add("y", y, exact, where=str(biases))
            assert same_bits(fc.ffn(x, fc.pack(w), activation="gelu"), y)
            grads = fc.ffn_backward(grad_y, saved).arrays()
            exact = reference.ffn_backward(grad_y, x, w, activation="gelu")
            assert set(grads) == set(exact)
            for name, gradient in grads.items():
                accuracy.add(name, gradient, exact[name], where=str(biases))


@pytest.mark.parametrize("dtype", [t for t in DTYPES if t != np.float64], ids=str)
def test_long_sums_are_as_good_as_numpys(dtype, gated, rng):
    """k up to 28672: with blocks of 512 the error is as small as that of pairwise sums."""
    for t, d, f in ((6, 28672, 24), (6, 24, 28672)):
        w = make_weights(rng, d, f, gated=gated, dtype=dtype)
        x, grad_y = normal(rng, t, d, dtype=dtype), normal(rng, t, d, dtype=dtype)
        rough_y, rough = yardsticks(x, w, grad_y, "silu")
        accuracy = Accuracy()
        exact = reference.ffn(x, w, activation="silu")
        y, saved = fc.ffn_forward(x, w, activation="silu")
        accuracy.add("y", y, exact, rough_y)
        exact = reference.ffn_backward(grad_y, x, w, activation="silu")
        for name, gradient in fc.ffn_backward(grad_y, saved).arrays().items():
            accuracy.add(name, gradient, exact[name], rough[name])
        accuracy.check()


def test_zero_tokens(isa, dtype, gated, rng):
    w = make_weights(rng, 7, 19, gated=gated, biases=all_biases(gated), dtype=dtype)
    for shape in ((0, 7), (3, 0, 7), (0, 3, 7)):
        x = np.empty(shape, dtype)
        y, saved = fc.ffn_forward(x, w, activation="silu")
        assert y.shape == shape
        grads = fc.ffn_backward(y, saved)
        assert grads.x.shape == shape
        assert all(not a.any() for a in grads.weights.arrays().values())
        kept = {"up": np.ones((19, 7), dtype)}
        fc.ffn_backward(y, saved, needs=("up",), out=kept, accumulate=True)
        assert (kept["up"] == 1).all()


def test_one_token_without_a_leading_dimension(isa, dtype, rng):
    w = make_weights(rng, 7, 19, dtype=dtype)
    x = normal(rng, 7, dtype=dtype)
    y, saved = fc.ffn_forward(x, w, activation="silu")
    assert y.shape == (7,)
    assert same_bits(y, fc.ffn(x[None], w, activation="silu")[0])
    assert fc.ffn_backward(x, saved).x.shape == (7,)
    assert saved.gate.shape == (19,)


def test_subclasses_of_arrays_are_arrays(rng, tmp_path):
    w = make_weights(rng, 3, 4)
    x = np.memmap(tmp_path / "x", np.float64, "w+", shape=(5, 3))
    x[...] = 1
    y = fc.ffn(x, w, activation="silu")
    assert type(y) is np.ndarray
    assert same_bits(y, fc.ffn(np.ones((5, 3)), w, activation="silu"))
