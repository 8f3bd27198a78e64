"""ffn_backward: save modes, needs=, out=, accumulate=, xielu's parameters, packed weights."""

# ruff: noqa: ARG001 (a test names the fixtures that it runs under)

import numpy as np
import pytest
from support import TOLERANCE, all_biases, make_weights, normal, same_bits

import ffncore as fc
from ffncore import reference
from ffncore.values.weights import NAMES


def test_backward_can_run_twice(isa, rng):
    w = make_weights(rng, 5, 7)
    x = normal(rng, 4, 5)
    y, saved = fc.ffn_forward(x, w, activation="silu")
    first, second = (fc.ffn_backward(y, saved).arrays() for _ in range(2))
    assert all(same_bits(first[name], second[name]) for name in first)


def test_save_input_keeps_references_alone(isa, dtype, gated, rng):
    w = make_weights(rng, 17, 33, gated=gated, dtype=dtype)
    x, grad_y = normal(rng, 70, 17, dtype=dtype), normal(rng, 70, 17, dtype=dtype)
    y, saved = fc.ffn_forward(x, w, activation="gelu")
    y_input, light = fc.ffn_forward(x, w, activation="gelu", save="input")
    assert (light.nbytes, light.gate, light.up, light.save) == (0, None, None, "input")
    assert same_bits(y, y_input)
    full, again = (fc.ffn_backward(grad_y, s).arrays() for s in (saved, light))
    assert all(same_bits(full[name], again[name]) for name in full)


def test_xielu_parameters(isa, dtype, gated, rng):
    w = make_weights(rng, 17, 70, gated=gated, dtype=dtype)
    x, grad_y = normal(rng, 70, 17, dtype=dtype), normal(rng, 70, 17, dtype=dtype)
    act = fc.Activation("xielu", alpha_p=0.3, alpha_n=-0.4, beta=0.4, eps=-0.3)
    exact = reference.ffn_backward(grad_y, x, w, activation=act)
    for save in ("preactivations", "input"):
        _, saved = fc.ffn_forward(x, w, activation=act, save=save)
        numbers = fc.ffn_backward(grad_y, saved).activation
        allowed = 10 * TOLERANCE[dtype]
        assert numbers.alpha_p == pytest.approx(exact["alpha_p"], rel=allowed)
        assert numbers.alpha_n == pytest.approx(exact["alpha_n"], rel=allowed)
        only = fc.ffn_backward(grad_y, saved, needs=("activation",))
        assert only.activation == numbers
        assert only.x is None
        assert only.weights is None
        twice = fc.ffn_backward(grad_y, saved, needs=("activation",), out=only, accumulate=True)
        assert twice.activation.alpha_p == 2 * numbers.alpha_p


def test_needs_computes_what_is_asked_for(isa, dtype, gated, rng):
    w = make_weights(rng, 17, 35, gated=gated, biases=all_biases(gated), dtype=dtype)
    x, grad_y = normal(rng, 37, 17, dtype=dtype), normal(rng, 37, 17, dtype=dtype)
    for save in ("preactivations", "input"):
        _, saved = fc.ffn_forward(x, w, activation="silu", save=save)
        everything = fc.ffn_backward(grad_y, saved).arrays()
        names = list(everything)
        assert names == ["x", *(n for n in NAMES if n in w.arrays())]
        some = [(n,) for n in names] + [("x", "down"), ("up", "b_down"), ("b_up", "down", "x"), ()]
        for needs in some:
            grads = fc.ffn_backward(grad_y, saved, needs=needs).arrays()
            assert set(grads) == set(needs)
            assert all(same_bits(grads[name], everything[name]) for name in needs), needs


def test_needs_of_a_partial_answer(rng):
    w = make_weights(rng, 3, 4)
    x = normal(rng, 5, 3)
    _, saved = fc.ffn_forward(x, w, activation="silu")
    grads = fc.ffn_backward(x, saved, needs=("up",))
    assert grads.x is None
    assert grads.weights.gate is None
    assert grads.weights.up.shape == (4, 3)
    everything = fc.ffn_backward(x, saved).weights
    assert isinstance(everything, fc.FFNWeights)
    assert fc.pack(everything).shape == (4, 3)
    assert fc.ffn_backward(x, saved, needs=iter(["x", "x"])).weights is None


def test_out_and_accumulate_of_gradients(isa, dtype, gated, rng):
    w = make_weights(rng, 17, 35, gated=gated, biases=all_biases(gated), dtype=dtype)
    x, grad_y = normal(rng, 37, 17, dtype=dtype), normal(rng, 37, 17, dtype=dtype)
    _, saved = fc.ffn_forward(x, w, activation="silu")
    fresh = fc.ffn_backward(grad_y, saved)
    for turned in (False, True):

        def room(a, turned=turned):
            return np.full(a.shape[::-1], np.nan, dtype).T if turned else np.full_like(a, np.nan)

        out = {name: room(a) for name, a in fresh.arrays().items()}
        filled = fc.ffn_backward(grad_y, saved, out=out)
        for name, a in filled.arrays().items():
            assert a is out[name]
            assert same_bits(a, fresh.arrays()[name]), name
        again = fc.ffn_backward(grad_y, saved, out=filled, accumulate=True)
        allowed = TOLERANCE[dtype]
        for name, a in again.arrays().items():
            assert a is out[name]
            twice = 2 * fresh.arrays()[name].astype(np.float64)
            np.testing.assert_allclose(a.astype(np.float64), twice, rtol=allowed, atol=allowed)


def test_out_may_hold_some_of_the_gradients(rng):
    w = make_weights(rng, 3, 4)
    x = normal(rng, 5, 3)
    _, saved = fc.ffn_forward(x, w, activation="silu")
    fresh = fc.ffn_backward(x, saved).arrays()
    up = np.ones((4, 3))
    grads = fc.ffn_backward(x, saved, out={"up": up, "x": None}, accumulate=True).arrays()
    np.testing.assert_allclose(up, 1 + fresh["up"], rtol=1e-13)
    assert all(same_bits(grads[n] + 0.0, fresh[n] + 0.0) for n in fresh if n != "up")


def test_gradient_of_a_fused_array_lands_in_its_halves(rng):
    fused, down = normal(rng, 8, 3), normal(rng, 3, 4)
    x = normal(rng, 5, 3)
    for layout in ("concat", "interleaved"):
        w = fc.FFNWeights.from_gate_up(fused, down, layout=layout)
        _, saved = fc.ffn_forward(x, w, activation="silu")
        room = np.empty_like(fused)
        mirror = fc.FFNWeights.from_gate_up(room, np.empty_like(down), layout=layout)
        out = fc.FFNGrads(weights=mirror)
        grads = fc.ffn_backward(x, saved, needs=("gate", "up", "down"), out=out)
        fresh = fc.ffn_backward(x, saved)
        assert np.shares_memory(grads.weights.gate, room)
        assert same_bits(mirror.gate, fresh.weights.gate)
        assert same_bits(mirror.up, fresh.weights.up)


def test_packed_weights_give_the_gradient_of_x(isa, dtype, gated, rng):
    w = make_weights(rng, 17, 35, gated=gated, biases=all_biases(gated), dtype=dtype)
    x, grad_y = normal(rng, 37, 17, dtype=dtype), normal(rng, 37, 17, dtype=dtype)
    _, saved = fc.ffn_forward(x, w, activation="silu")
    expected = fc.ffn_backward(grad_y, saved).x
    for save in ("preactivations", "input"):
        _, packed = fc.ffn_forward(x, fc.pack(w), activation="silu", save=save)
        grads = fc.ffn_backward(grad_y, packed)
        assert grads.weights is None
        assert same_bits(grads.x, expected)
