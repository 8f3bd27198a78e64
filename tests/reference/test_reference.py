"""The reference against the complex step if its formulas are analytic, else against differences."""

import math
from dataclasses import replace

import numpy as np
import pytest
from support import (
    CASE_IDS,
    CASES,
    COMPLEX_STEP,
    NAMES,
    all_biases,
    complex_step,
    make_weights,
    normal,
)

import ffncore as fc
from ffncore import reference


def needs_erf(act):
    return act.name == "gelu"


@pytest.mark.parametrize("name", NAMES)
def test_derivative_of_the_formula(name):
    act = fc.Activation(name)
    value, derivative = reference.FORMULAS[name]
    v = np.linspace(-6, 6, 1001) + 1e-3  # no kink is hit
    if needs_erf(act):
        h = 1e-5
        numeric, allowed = (value(v + h, act) - value(v - h, act)) / (2 * h), 1e-9
    else:
        numeric, allowed = value(v + 1j * COMPLEX_STEP, act).imag / COMPLEX_STEP, 1e-14
    np.testing.assert_allclose(derivative(v, act), numeric, rtol=allowed, atol=allowed)


@pytest.mark.parametrize("gated, act", CASES, ids=CASE_IDS)
def test_block_gradients(gated, act, rng):
    w = make_weights(rng, 3, 4, gated=gated, biases=all_biases(gated))
    x, grad_y = normal(rng, 5, 3), normal(rng, 5, 3)
    grads = reference.ffn_backward(grad_y, x, w, activation=act)
    arrays = {"x": x, **w.arrays()}
    for name, array in arrays.items():

        def loss(moved, name=name, dtype=np.complex128):
            given = {**arrays, name: moved}
            y = reference.ffn(given["x"], given, activation=act, dtype=dtype)
            return (grad_y * y).sum()

        if needs_erf(act):
            numeric, allowed, h = np.empty(array.shape), 1e-8, 1e-5
            for index in np.ndindex(array.shape):
                step = np.zeros(array.shape)
                step[index] = h
                above, below = loss(array + step, dtype=float), loss(array - step, dtype=float)
                numeric[index] = (above - below) / (2 * h)
        else:
            numeric, allowed = complex_step(loss, array), 1e-12
        largest = np.abs(numeric).max()
        assert np.abs(grads[name] - numeric).max() <= allowed * max(1, largest), name


@pytest.mark.parametrize("gated", [False, True])
def test_xielu_parameters(gated, rng):
    act = fc.Activation("xielu", alpha_p=0.2, alpha_n=-0.3, beta=0.4, eps=-0.1)
    w = make_weights(rng, 3, 4, gated=gated)
    x, grad_y = normal(rng, 7, 3), normal(rng, 7, 3)
    grads = reference.ffn_backward(grad_y, x, w, activation=act)
    h = 1e-5
    for name in ("alpha_p", "alpha_n"):
        above, below = (
            (grad_y * reference.ffn(x, w, activation=replace(act, **{name: a}))).sum()
            for a in (getattr(act, name) + h, getattr(act, name) - h)
        )
        assert grads[name] == pytest.approx((above - below) / (2 * h), rel=1e-8)


def test_known_values():
    v = np.array([-2.0, -0.5, 0.0, 0.5, 2.0])
    erf = np.array([math.erf(a / math.sqrt(2)) for a in v])
    np.testing.assert_allclose(reference.activation(v, activation="gelu"), v / 2 * (1 + erf))
    np.testing.assert_array_equal(reference.activation(v, activation="relu2"), [0, 0, 0, 0.25, 4.0])
    np.testing.assert_allclose(
        reference.activation(v, activation="hardswish"), [-1 / 3, -5 / 24, 0, 7 / 24, 5 / 3]
    )
    # gpt-oss: the gate is clamped from above, up on both sides, and 1 is added to up.
    act = fc.Activation("silu", alpha=1.702, limit=7.0, up_offset=1.0)
    h = reference.activation([9.0, -9.0], [-8.0, 8.0], activation=act)
    np.testing.assert_allclose(h, [7 / (1 + np.exp(-11.914)) * -6, -9 / (1 + np.exp(15.318)) * 8])


def test_xielu_starts_where_its_authors_start_it():
    a_p, a_n, beta, eps = reference.xielu_parameters(fc.Activation("xielu"))
    assert (a_p, a_n) == (pytest.approx(0.8), pytest.approx(0.8))
    assert (beta, eps) == (0.5, -1e-6)


def test_clamps_pass_the_gradient_at_the_limit_itself():
    act = fc.Activation("identity", limit=1.0)
    gate, up = np.array([0.5, 1.0, 1.5, -9.0]), np.array([-1.0, 1.0, 1.5, -1.5])
    grads = reference.activation_backward(np.ones(4), gate, up, activation=act)
    np.testing.assert_array_equal(grads.x, [-1, 1, 0, -1])
    np.testing.assert_array_equal(grads.up, [0.5, 1, 0, 0])


def test_dtype_is_the_one_computed_in(rng):
    w = make_weights(rng, 3, 4)
    x = normal(rng, 2, 3)
    assert reference.ffn(x, w, activation="silu", dtype=np.float32).dtype == np.float32
    assert reference.ffn(x.astype(np.float32), w, activation="silu").dtype == np.float64
    for act in NAMES:
        assert reference.activation(x, activation=act, dtype=np.float32).dtype == np.float32
        for part in reference.activation_backward(x, x, x, activation=act, dtype=np.float32)[:2]:
            assert part.dtype == np.float32
